"""Read-only view of golden images in the watch caches.

Implements `cdi.reconcile.dataimportcron.context.CronLister`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from cdi.api.annotation_types import annotations_of
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.kinds import (
    CLAIMS,
    CRON_JOBS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    JOBS,
    NODES,
    PODS,
    VOLUME_SNAPSHOTS,
    Object,
    Resource,
)
from cdi.api.storageprofile import StorageProfile
from cdi.controller import cron_slots
from cdi.controller.clone_lister import SUBJECTS, InformerCloneLister
from cdi.controller.cron_reads import CronReads
from cdi.controller.informers import InformerSet
from cdi.controller.lister import ClusterLister
from cdi.controller.request import Request, Scope
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.clone.authorization import authorize
from cdi.reconcile.clone.plan_annotation import requested_source
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.dataimportcron.context import CloneRight, ImageStream, LocalTask
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.storage.profiles import SnapshotClass
from cdi.reconcile.types import PVC, Clone, Input, Rejected


class InformerCronLister:
    """Implementation of `CronLister` on the watch caches."""

    def __init__(
        self,
        watches: InformerSet,
        observed: ClusterLister,
        clones: InformerCloneLister,
        reads: CronReads,
        *,
        scope: Scope,
        install_namespace: str,
        volume_context: Callable[[Request], ReconcileContext | None],
    ) -> None:
        """Create the view.

        Args:
            watches: The watch caches.
            observed: View of volumes.
            clones: View of clones.
            reads: Answers of the API server.
            scope: Objects that this controller handles.
            install_namespace: The installation's namespace.
            volume_context: Returns the context of a DataVolume or PVC; None if this controller does not act on it.

        """
        self._watches = watches
        self._observed = observed
        self._clones = clones
        self._reads = reads
        self._scope = scope
        self._volume_context = volume_context
        self._install_namespace = install_namespace

    def cron(self, namespace: str, name: str) -> DataImportCron | None:
        with contextlib.suppress(InvalidManifest):
            return self._observed.model(DATA_IMPORT_CRONS, namespace, name, DataImportCron)
        return None  # an invalid one is reported when its own key is reconciled

    # --- objects of versions ----------------------------------------------------------------------------------------

    def data_volume(self, namespace: str, name: str) -> DataVolume | None:
        return self._observed.data_volume(namespace, name)

    def data_volumes_of(self, namespace: str, cron: str) -> tuple[DataVolume, ...]:
        found = (self.data_volume(namespace, name) for name in self._owned(DATA_VOLUMES, namespace, cron))
        return tuple(one for one in found if one is not None)

    def claim(self, namespace: str, name: str) -> PVC | None:
        return self._observed.claim(namespace, name)

    def claims_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        found = (self.claim(namespace, name) for name in self._owned(CLAIMS, namespace, cron))
        return tuple(one for one in found if one is not None)

    def data_source(self, namespace: str, name: str) -> DataSource | None:
        return self._observed.data_source(namespace, name)

    def data_sources_of(self, namespace: str, cron: str) -> tuple[DataSource, ...]:
        found = (self.data_source(namespace, name) for name in self._owned(DATA_SOURCES, namespace, cron))
        return tuple(one for one in found if one is not None)

    def snapshot(self, namespace: str, name: str) -> Snapshot | None:
        return self._clones.snapshot(namespace, name)

    def snapshots_of(self, namespace: str, cron: str) -> tuple[Snapshot, ...]:
        found = (self.snapshot(namespace, name) for name in self._owned(VOLUME_SNAPSHOTS, namespace, cron))
        return tuple(one for one in found if one is not None)

    def descendants_of(self, namespace: str, cron: str) -> tuple[PVC, ...]:
        found = (self.claim(space, name) for space, name in self._watches.crons.descendants(namespace, cron))
        return tuple(one for one in found if one is not None)

    def clones_in_progress(self, namespace: str, name: str) -> tuple[str, ...]:
        return tuple(sorted(set(self._clones_of(namespace, name))))

    def _clones_of(self, namespace: str, name: str) -> Iterator[str]:
        for snapshot in (False, True):
            for key in self._watches.waiting.clones_of(namespace, name, snapshot=snapshot):
                named = self._clones_from(key.namespace, key.name, namespace, name)
                if named and self._may_clone(key, namespace, name):
                    yield f"{key.namespace}/{key.name}"

    def _may_clone(self, target: Request, namespace: str, name: str) -> bool:
        """Return whether this installation reconciles an object as a clone, and its source may be cloned into it.

        Anybody may create an object that names a source in another namespace; it must not keep that source.
        """
        try:
            context = self._volume_context(target)
        except InvalidManifest:
            return target.namespace == namespace  # it may have been valid when the clone began
        if context is None:
            return False
        spec, claim = context.datavolume.spec, self.claim(target.namespace, target.name)
        cloned = spec.source is not None and (spec.source.pvc is not None or spec.source.snapshot is not None)
        # Without the signing key it is unknown whether the clone is authorized, so the source is kept.
        return (cloned or spec.source_ref is not None) and not all(
            isinstance(authorize(context, Clone(namespace=namespace, name=name, kind=kind), claim), Rejected)
            for kind in SUBJECTS
        )

    def _clones_from(self, namespace: str, name: str, source_namespace: str, source: str) -> bool:
        """Return whether an unfinished clone is one of this source; DataSources are resolved as they are now."""
        body = self._watches.get(DATA_VOLUMES, namespace, name)
        ref = ((body or {}).get("spec") or {}).get("sourceRef")
        if not ref or self._watches.get(CLAIMS, namespace, name) is not None:
            # Its PVC names the source; the index is exact for that.
            return not ref or self._requests(namespace, name, source_namespace, source)
        with contextlib.suppress(InvalidManifest):
            found = self.data_source(ref.get("namespace") or namespace, ref.get("name") or "")
            if found is not None and found.reference is not None:
                found = self.data_source(found.reference.namespace, found.reference.name)
            volume = found.volume if found is not None else None
            return volume is not None and (volume.namespace, volume.name) == (source_namespace, source)
        return True  # it cannot be excluded

    def _requests(self, namespace: str, name: str, source_namespace: str, source: str) -> bool:
        body = self._watches.get(CLAIMS, namespace, name)
        asked = requested_source(annotations_of(body))
        return asked is None or asked[:2] == (source_namespace, source)

    # --- storage ----------------------------------------------------------------------------------------------------

    def storage_class(self, name: str) -> StorageClass | None:
        return self._observed.storage_class(name)

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        return self._observed.default_storage_class(virtualization=virtualization)

    def storage_profile(self, storage_class: str) -> StorageProfile | None:
        return self._observed.storage_profile(storage_class)

    def snapshot_classes(self) -> tuple[SnapshotClass, ...]:
        return self._observed.snapshot_classes()

    # --- what is read from the API server ---------------------------------------------------------------------------

    def input(self, ref: ObjectRef) -> Input | None:
        return self._observed.input(ref)

    def may_clone(self, right: CloneRight) -> bool | None:
        return self._reads.may_clone(right)

    def image_stream(self, namespace: str, name: str) -> ImageStream | None:
        return self._reads.image_stream(namespace, name)

    # --- polls and proofs -------------------------------------------------------------------------------------------

    def cron_jobs_of(self, namespace: str, cron: str) -> tuple[Object, ...]:
        return self._installed(CRON_JOBS, namespace, cron)

    def jobs_of(self, namespace: str, cron: str) -> tuple[Object, ...]:
        return self._installed(JOBS, namespace, cron)

    def job_pods(self, job: str) -> tuple[Object, ...]:
        names = self._watches.crons.job_pods(self._install_namespace, job)
        found = (self._watches.get(PODS, self._install_namespace, name) for name in names)
        return tuple(one for one in found if one is not None)

    def pod(self, namespace: str, name: str) -> Object | None:
        return self._watches.get(PODS, namespace, name)

    def running_polls(self) -> Mapping[str, int]:
        return cron_slots.running_polls(self._watches)

    def waiting_polls(self, now: float) -> Mapping[str, int]:
        return cron_slots.waiting_polls(self._watches, self._scope, now)

    def running_proofs(self) -> Mapping[str, int]:
        return cron_slots.running_proofs(self._watches)

    def waiting_proofs(self, now: float) -> Mapping[str, int]:
        return cron_slots.waiting_proofs(self._watches, self._scope, now)

    def offers_device(self, resource: str) -> bool:
        for body in self._watches.values(NODES):
            amount = ((body.get("status") or {}).get("allocatable") or {}).get(resource)
            if amount not in (None, "0", 0) and self._observed.node_ready(body["metadata"]["name"]):
                return True
        return False

    def local_task(self, task: Literal["poll", "proof"], uid: str) -> LocalTask | None:  # noqa: ARG002  signature of the protocol
        return None

    def _owned(self, resource: Resource, namespace: str, cron: str) -> Iterator[str]:
        for space, name in self._watches.crons.owned(resource, namespace, cron):
            if space == namespace:
                yield name

    def _installed(self, resource: Resource, namespace: str, cron: str) -> tuple[Object, ...]:
        found = (
            self._watches.get(resource, space, name)
            for space, name in self._watches.crons.owned(resource, namespace, cron)
            if space == self._install_namespace
        )
        return tuple(one for one in found if one is not None)
