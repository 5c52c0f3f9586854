"""Objects of one version of a golden image: its DataVolume, PVC and VolumeSnapshot, which all have its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.meta import Condition
from cdi.api.names import ANN_POD_PHASE, ANN_USE_POPULATOR
from cdi.api.phases import FAILING, ConditionStatus, ConditionType, Phase, Reason
from cdi.reconcile.actions import Action, DeleteObject, PatchObject
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.types import PVC

_REGULAR: Final = frozenset(
    {
        *Phase,
        Reason.CONTAINER_CREATING,
        Reason.CREATING_SCRATCH_SPACE,
        Reason.TRANSFER_RUNNING,
        Reason.COMPLETED,
    }
)
"""Reasons in the detail of a DataVolume in the course of an import that goes well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionObjects:
    """The existing objects of a version."""

    name: str
    data_volume: DataVolume | None = None
    claim: PVC | None = None
    snapshot: Snapshot | None = None

    @property
    def exist(self) -> bool:
        return self.data_volume is not None or self.claim is not None or self.snapshot is not None

    @property
    def deleting(self) -> bool:
        """Whether any of them is being deleted."""
        return (
            (self.data_volume is not None and self.data_volume.metadata.deletion_timestamp is not None)
            or (self.claim is not None and self.claim.deleting)
            or (self.snapshot is not None and self.snapshot.deleting)
        )

    @property
    def phase(self) -> str:
        """Phase of the DataVolume; empty if it has none yet or does not exist."""
        status = self.data_volume.status if self.data_volume is not None else None
        return (status.phase if status is not None else None) or ""

    @property
    def complete_claim(self) -> PVC | None:
        """The PVC, if its content is complete."""
        if self.claim is None or self.claim.deleting:
            return None
        if self.data_volume is not None:
            deleted = self.data_volume.metadata.deletion_timestamp is not None
            return self.claim if self.phase == Phase.SUCCEEDED and not deleted else None
        return self.claim if self.claim.phase == "Bound" and _is_filled(self.claim) else None

    @property
    def ready_snapshot(self) -> Snapshot | None:
        """The VolumeSnapshot, if volumes can be created from it."""
        return (
            self.snapshot if self.snapshot is not None and self.snapshot.ready and not self.snapshot.deleting else None
        )

    @property
    def succeeded(self) -> bool:
        """Whether the import has succeeded."""
        if self.data_volume is not None:
            return self.phase == Phase.SUCCEEDED and self.data_volume.metadata.deletion_timestamp is None
        if self.claim is not None:
            return self.complete_claim is not None
        return self.snapshot is not None and not self.snapshot.deleting

    @property
    def unfinished(self) -> bool:
        """Whether an import runs that has not failed finally."""
        return self.data_volume is not None and not self.deleting and self.phase != Phase.FAILED

    @property
    def failure(self) -> tuple[str, str] | None:
        """Reason and message of the import's final failure; None if it has not failed or is still being retried."""
        return self.trouble if self.phase == Phase.FAILED else None

    @property
    def trouble(self) -> tuple[str, str] | None:
        """Reason and message of why the import fails, finally or at the moment; None if it does not."""
        dv = self.data_volume
        if dv is None or dv.status is None or not self.replaceable:
            return None
        running, detail = self._running, dv.status.detail
        reason = (detail.reason if detail is not None else None) or (running.reason if running is not None else None)
        message = (detail.message if detail is not None else None) or (running.message if running is not None else None)
        return reason or Phase.FAILED, message or f"Import DataVolume phase {self.phase}"

    @property
    def obstacle(self) -> tuple[str, str] | None:
        """Reason and message of what keeps an unfinished import from going on; None in its regular course."""
        dv = self.data_volume
        if dv is None or dv.status is None or not self.unfinished or self.succeeded:
            return None
        if self.trouble is not None:
            return self.trouble
        detail = dv.status.detail
        reason = (detail.reason if detail is not None else None) or ""
        if detail is None or not reason or reason in _REGULAR:
            return None
        return reason, detail.message or reason

    @property
    def replaceable(self) -> bool:
        """Whether the import fails, finally or at the moment, so that a newer version need not wait for it."""
        running = self._running
        failing = running is not None and running.status == ConditionStatus.FALSE and running.reason in FAILING
        return self.phase == Phase.FAILED or failing or self._abandoned

    @property
    def _abandoned(self) -> bool:
        """Whether the DataVolume was deleted but not its PVC, whose import has failed."""
        return (
            self.data_volume is None
            and self.claim is not None
            and self.claim.annotations.get(ANN_POD_PHASE) == "Failed"
        )

    @property
    def _running(self) -> Condition | None:
        status = self.data_volume.status if self.data_volume is not None else None
        conditions = (status.conditions if status is not None else None) or ()
        return next((one for one in conditions if one.type == ConditionType.RUNNING), None)


def _is_filled(claim: PVC) -> bool:
    """Return whether the import into a bound PVC without a DataVolume has ended successfully.

    A populator binds a PVC once its content is complete, but a direct import fills a PVC that is bound. Its DataVolume
    may have been deleted in the meantime, before the garbage collector deletes the PVC.
    """
    pod = claim.annotations.get(ANN_POD_PHASE)
    if pod is None:
        return claim.annotations.get(ANN_USE_POPULATOR) != "false"
    return pod == "Succeeded"


def objects_of(context: CronContext, name: str) -> VersionObjects:
    """Return the objects of the version of this name."""
    return VersionObjects(
        name=name,
        data_volume=context.objects.data_volume(context.namespace, name),
        claim=context.objects.claim(context.namespace, name),
        snapshot=context.objects.snapshot(context.namespace, name) if context.platform.cluster else None,
    )


def delete_data_volume(objects: VersionObjects) -> tuple[Action, ...]:
    """Return the deletion of the DataVolume, or of the PVC if there is no DataVolume."""
    dv, claim = objects.data_volume, objects.claim
    if dv is not None:
        if dv.metadata.deletion_timestamp is not None:
            return ()
        return (
            DeleteObject(
                plural="datavolumes",
                namespace=dv.metadata.namespace or "",
                name=objects.name,
                uid=dv.metadata.uid or "",
            ),
        )
    if claim is None or claim.deleting:
        return ()
    return (delete_volume(claim),)


def delete_snapshot(objects: VersionObjects) -> tuple[Action, ...]:
    """Return the deletion of the VolumeSnapshot."""
    snapshot = objects.snapshot
    if snapshot is None or snapshot.deleting:
        return ()
    return (delete_volume(snapshot),)


def delete_volume(volume: PVC | Snapshot) -> DeleteObject:
    """Return the deletion of a PVC or VolumeSnapshot."""
    return DeleteObject(plural=plural_of(volume), namespace=volume.namespace, name=volume.name, uid=volume.uid)


def patch_volume(
    volume: PVC | Snapshot,
    *,
    annotations: Mapping[str, str | None] | None = None,
    labels: Mapping[str, str] | None = None,
) -> tuple[PatchObject, ...]:
    """Return the patch that sets annotations and labels of a PVC or VolumeSnapshot; empty if there are none to set."""
    if not annotations and not labels:
        return ()
    patch = PatchObject(
        plural=plural_of(volume),
        namespace=volume.namespace,
        name=volume.name,
        uid=volume.uid,
        annotations=annotations or {},
        labels=labels or {},
    )
    return (patch,)


def plural_of(volume: PVC | Snapshot) -> str:
    """Return the plural name of the kind of a PVC or VolumeSnapshot."""
    return "persistentvolumeclaims" if isinstance(volume, PVC) else "volumesnapshots"
