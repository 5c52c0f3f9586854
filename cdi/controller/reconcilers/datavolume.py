"""Reconciler of volumes: the DataVolume and the PVC of one name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import ClassVar, Final

from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    CSI_DRIVERS,
    DATA_SOURCES,
    DATA_VOLUMES,
    EVENTS,
    NODES,
    OBJECT_TRANSFERS,
    PODS,
    SERVICES,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_CLONE_SOURCES,
    VOLUME_IMPORT_SOURCES,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    VOLUME_UPLOAD_SOURCES,
    VOLUMES,
    Object,
    Resource,
)
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers import clone_events
from cdi.controller.reconcilers.base import Handler, KindReconciler, Watch, changed
from cdi.controller.reconcilers.clone_gc import TemporaryClaims
from cdi.controller.reconcilers.dependencies import MAX_INPUT_ROUNDS, Dependencies
from cdi.controller.reconcilers.event_handlers import (
    claim_named,
    owners_of,
    pvc_and_targets,
    readiness,
    unfinished_volumes,
    volume_facts,
)
from cdi.controller.request import Request, datavolume
from cdi.controller.result import Result, soonest
from cdi.controller.status_throttle import StatusThrottle
from cdi.controller.transfer_lister import endpoints, locks_of_others
from cdi.kube.reflector import WatchEvent
from cdi.logs import fields
from cdi.reconcile.actions import Plan, SetFinalizer
from cdi.reconcile.context import Rejection
from cdi.reconcile.datavolume.reconcile import reconcile

_POPULATOR_SOURCES: Final = (VOLUME_IMPORT_SOURCES, VOLUME_UPLOAD_SOURCES, VOLUME_CLONE_SOURCES)
_RELEVANT_TO_UNFINISHED: Final = (
    DATA_SOURCES,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOT_CLASSES,
    CDIS,
    CDI_CONFIGS,
    CSI_DRIVERS,
)

log = logging.getLogger("cdi.controller")


class DataVolumeReconciler(KindReconciler):
    """Reconciler of DataVolumes, of PVCs that are populated without one, and of temporary PVCs of clones."""

    name: ClassVar = "volume"
    resource: ClassVar = DATA_VOLUMES

    def __init__(self, dependencies: Dependencies) -> None:
        super().__init__(dependencies)
        self._throttle = StatusThrottle(dependencies.now)
        self._temporary_claims = TemporaryClaims(dependencies)

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        return (
            Watch(resource=DATA_VOLUMES, handler=_itself),
            Watch(resource=DATA_VOLUMES, handler=_clones, predicate=changed(volume_facts)),
            Watch(resource=CLAIMS, handler=_targets),
            Watch(resource=CLAIMS, handler=clone_events.volumes_recording_pvc),
            Watch(resource=CLAIMS, handler=_clones, predicate=changed(clone_events.source_facts)),
            *(Watch(resource=resource, handler=_owners) for resource in (PODS, SERVICES, *_POPULATOR_SOURCES)),
            *(Watch(resource=resource, handler=_pvcs_referencing(resource)) for resource in _POPULATOR_SOURCES),
            Watch(resource=PODS, handler=clone_events.volumes_of_source_pod),
            Watch(resource=VOLUME_SNAPSHOTS, handler=clone_events.volumes_of_snapshot),
            Watch(resource=VOLUME_SNAPSHOT_CONTENTS, handler=clone_events.volumes_of_snapshot_content),
            Watch(resource=EVENTS, handler=_involved, predicate=lambda change: change.type == "ADDED"),
            Watch(resource=VOLUMES, handler=_bound_pvcs),
            Watch(resource=NODES, handler=_on_node, predicate=changed(readiness)),
            Watch(resource=OBJECT_TRANSFERS, handler=_endpoints, predicate=lambda change: change.type == "DELETED"),
            *(Watch(resource=resource, handler=_unfinished) for resource in _RELEVANT_TO_UNFINISHED),
        )

    @staticmethod
    def initial(caches: InformerSet) -> Iterator[Request]:
        for body in caches.values(DATA_VOLUMES):
            yield datavolume(body["metadata"]["namespace"], body["metadata"]["name"])
        for body in caches.values(CLAIMS):
            yield from pvc_and_targets(body, caches)
        for body in caches.values(PODS):
            yield from clone_events.volumes_served_by(body, caches)

    def get_object(self, request: Request) -> Object | None:
        return self._d.volume_object(request)

    def handles(self, request: Request, body: Object) -> bool:  # noqa: ARG002  signature of the base class
        return self._d.ownership.handles_volume(body)

    async def reconcile(self, request: Request) -> Result:
        body = self.get_object(request)
        await self._temporary_claims.reconcile(request)
        await self._release_locks(request)
        if body is None or not self.handles(request, body):
            self._d.inputs.forget(request)
            return Result()
        plan = await self._plan(request, None)
        if plan is None:
            return Result()
        plan = self._throttle.filter(request, plan, body)
        rejection = await self._d.apply(request, plan, body)
        if rejection is None:
            # No watch reports a change of a Secret or ConfigMap, so the volume is reconciled again when its next read
            # is due.
            return soonest(plan.requeue_after, self._d.inputs.pause(request))
        fallback_plan = await self._plan(request, rejection)
        body = self.get_object(request)
        if fallback_plan is not None and body is not None:
            await self._d.apply(request, fallback_plan, body)
        pause = fallback_plan.requeue_after if fallback_plan is not None else None
        return Result(requeue_after=self._d.retries.patience if pause is None else pause)

    async def _plan(self, request: Request, rejection: Rejection | None) -> Plan | None:
        """Return the plan after reading the objects that it refers to; None if there is nothing to reconcile."""
        reads = 0
        while True:
            with self._d.inputs.track(request):
                context = self._d.volume_context(request, rejection)
                plan = reconcile(context) if context is not None else None
            if reads == MAX_INPUT_ROUNDS or not await self._d.inputs.read(request):
                return plan
            reads += 1

    async def _release_locks(self, request: Request) -> None:
        """Remove from a PVC the finalizers of ObjectTransfers that no longer exist.

        A transfer removes its own, unless its finalizer was removed by another client.
        """
        claim = self._d.caches.get(CLAIMS, request.namespace, request.name)
        if claim is None or not self._d.scope.includes_namespace(request.namespace):
            return
        if not locks_of_others(claim, self._d.caches.values(OBJECT_TRANSFERS)):
            return
        # A transfer may have been created, and have locked the PVC, after the cache was filled.
        current = await self._d.client.list(OBJECT_TRANSFERS)
        actions = tuple(
            SetFinalizer(
                plural=CLAIMS.plural,
                namespace=request.namespace,
                name=request.name,
                uid=claim["metadata"]["uid"],
                finalizer=finalizer,
                present=False,
            )
            for finalizer in locks_of_others(claim, current.items)
        )
        if actions:
            log.info("releasing a PVC from a deleted ObjectTransfer", extra=fields(key=request))
            await self._d.apply(request, Plan(actions=actions), claim)


# --- event handlers ---------------------------------------------------------------------------------------------


def _itself(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    metadata = change.object["metadata"]
    yield datavolume(metadata["namespace"], metadata["name"])


def _clones(change: WatchEvent, caches: InformerSet) -> Iterable[Request]:
    """Return the unfinished clones of a volume."""
    metadata = change.object["metadata"]
    return caches.waiting.clones_of(metadata["namespace"], metadata["name"])


def _targets(change: WatchEvent, caches: InformerSet) -> Iterable[Request]:
    return pvc_and_targets(change.object, caches)


def _owners(change: WatchEvent, caches: InformerSet) -> Iterable[Request]:
    return owners_of(change.object, caches)


def _pvcs_referencing(resource: Resource) -> Handler:
    """Return a handler that yields the PVCs that refer to a populator's volume source."""

    def handler(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
        metadata = change.object["metadata"]
        for claim in caches.values(CLAIMS):
            ref = (claim.get("spec") or {}).get("dataSourceRef") or {}
            if ref.get("name") == metadata["name"] and ref.get("kind") == resource.kind:
                namespace = ref.get("namespace") or claim["metadata"]["namespace"]
                if namespace == metadata["namespace"]:
                    yield from pvc_and_targets(claim, caches)

    return handler


def _involved(change: WatchEvent, caches: InformerSet) -> Iterable[Request]:
    """Return the volume of the PVC that an Event is about."""
    involved_object = change.object["involvedObject"]
    return claim_named(involved_object.get("namespace") or "", involved_object.get("name") or "", caches)


def _bound_pvcs(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the volumes of the PVCs that a PersistentVolume was bound to and is bound to."""
    for state in (change.old, change.new):
        ref = ((state or {}).get("spec") or {}).get("claimRef") or {}
        yield from claim_named(ref.get("namespace") or "", ref.get("name") or "", caches)


def _on_node(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the volumes of the pods on a node."""
    for pod in caches.values(PODS):
        if (pod.get("spec") or {}).get("nodeName") == change.object["metadata"]["name"]:
            yield from owners_of(pod, caches)


def _endpoints(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    """Yield source and target of a deleted ObjectTransfer, whose finalizer they may have."""
    for place in endpoints(change.object):
        if all(place):
            yield datavolume(*place)


def _unfinished(change: WatchEvent, caches: InformerSet) -> Iterable[Request]:  # noqa: ARG001  signature of handlers
    return unfinished_volumes(caches)
