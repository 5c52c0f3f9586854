"""Reconcilers of temporary objects of clones that have no owner: garbage collection (`cdi.reconcile.clone.gc`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import CLONE_TARGET
from cdi.api.kinds import (
    CLAIMS,
    DATA_VOLUMES,
    PODS,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    Object,
)
from cdi.controller.clone_lister import is_size_detection_pod
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers import clone_events
from cdi.controller.reconcilers.base import KindReconciler, Watch
from cdi.controller.reconcilers.dependencies import Dependencies
from cdi.controller.request import Request
from cdi.controller.result import Result
from cdi.reconcile.actions import Plan
from cdi.reconcile.clone.gc import reconcile_claim, reconcile_measurement, reconcile_reader, reconcile_snapshot

_GRACE: Final = 2.0
"""Seconds between the end of a snapshot's last user and its deletion.

The snapshot controller keeps a snapshot from which a pending PVC is created, and retries only a quarter of an hour
later. It may see the end of that PVC later than the snapshot's deletion, so the deletion is delayed.
"""


class SnapshotReconciler(KindReconciler):
    """Reconciler of temporary snapshots."""

    name: ClassVar = "snapshot"
    resource: ClassVar = VOLUME_SNAPSHOTS

    def __init__(self, dependencies: Dependencies) -> None:
        super().__init__(dependencies)
        self._unneeded: dict[Request, float] = {}
        """Since when each snapshot has not been needed, in seconds since the epoch."""

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        return (
            Watch(resource=CLAIMS, handler=clone_events.snapshots_of_pvc),
            Watch(resource=VOLUME_SNAPSHOTS, handler=clone_events.snapshot_itself),
            Watch(resource=VOLUME_SNAPSHOT_CONTENTS, handler=clone_events.snapshot_of_changed_content),
        )

    @staticmethod
    def initial(caches: InformerSet) -> Iterator[Request]:
        for body in caches.values(VOLUME_SNAPSHOTS):
            if clone_events.is_temporary(body):
                yield clone_events.snapshot(body["metadata"]["namespace"], body["metadata"]["name"])

    async def reconcile(self, request: Request) -> Result:
        return await _apply(self._d, request, self.plan(request), self.get_object(request))

    def plan(self, request: Request) -> Plan | None:
        """Return the plan for a snapshot; None if it does not exist or belongs to another installation."""
        found = self._d.clones.snapshot(request.namespace, request.name)
        ours = _is_ours(self._d, self.get_object(request))
        plan = reconcile_snapshot(found, self._d.clones.targets()) if found is not None and ours else None
        if plan is None or not plan.actions:
            self._unneeded.pop(request, None)
            return plan
        now = self._d.now()
        left = self._unneeded.setdefault(request, now) + _GRACE - now
        return plan if left <= 0 else Plan(requeue_after=min(left, _GRACE))


class SourcePodReconciler(KindReconciler):
    """Reconciler of source and size-detection pods."""

    name: ClassVar = "reader"
    resource: ClassVar = PODS

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        return (
            Watch(resource=PODS, handler=clone_events.reader_itself),
            Watch(resource=CLAIMS, handler=clone_events.readers_of_pvc),
            Watch(resource=DATA_VOLUMES, handler=clone_events.readers_of_data_volume),
        )

    @staticmethod
    def initial(caches: InformerSet) -> Iterator[Request]:
        for body in caches.values(PODS):
            if clone_events.is_temporary(body):
                yield clone_events.reader(body)

    async def reconcile(self, request: Request) -> Result:
        return await _apply(self._d, request, self._plan(request), self.get_object(request))

    def _plan(self, request: Request) -> Plan | None:
        body = self.get_object(request)
        reader = self._d.clones.source_pod(request.namespace, request.name)
        if body is None or reader is None or not _is_ours(self._d, body):
            return None
        measurement = (
            self._d.clones.size_detection_pod(request.namespace, request.name) if is_size_detection_pod(body) else None
        )
        if measurement is not None:
            target = CLONE_TARGET.read(annotations_of(body))
            dv = self._d.lister.data_volume(*target) if target is not None else None
            return reconcile_measurement(request.namespace, request.name, measurement, dv)
        includes_namespace = self._d.scope.includes_namespace
        return reconcile_reader(request.namespace, request.name, reader, self._d.lister, includes_namespace)


class TemporaryClaims:
    """Garbage collector of temporary PVCs, whose requests are those of the volume with their name."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._d = dependencies

    async def reconcile(self, request: Request) -> None:
        """Delete the PVC of a request if it is a temporary one that no clone needs any more."""
        body = self._d.caches.get(CLAIMS, request.namespace, request.name)
        claim = self._d.lister.claim(request.namespace, request.name)
        if claim is not None and _is_ours(self._d, body):
            plan = reconcile_claim(claim, self._d.lister, self._d.clones.targets())
            await _apply(self._d, request, plan, self._d.volume_object(request))


async def _apply(d: Dependencies, request: Request, plan: Plan | None, body: Object | None) -> Result:
    if plan is None:
        return Result()
    await d.apply(request, plan, body)
    return Result(requeue_after=plan.requeue_after)


def _is_ours(d: Dependencies, body: Object | None) -> bool:
    """Return whether an object has the label of temporary objects and a target that this installation handles."""
    if body is None or not clone_events.is_temporary(body):
        return False
    namespace, _ = CLONE_TARGET.read(annotations_of(body)) or ("", "")
    return d.ownership.handles(namespace, body)
