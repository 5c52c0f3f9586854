"""Temporary PVCs restored from snapshots, for host-assisted clones, since pods cannot read a snapshot.

    record ── PVC tmp-pvc-<the snapshot's uid> ── copied by pods ── deleted with the last clone that reads it

All concurrent clones of a snapshot share one PVC. It is in the snapshot's namespace, where the target cannot own it, so
it has a label and is deleted like the temporary snapshots (`cdi.reconcile.clone.gc`).
"""

from __future__ import annotations

from dataclasses import replace

from cdi.api.datavolume import ContentType
from cdi.api.errors import SourceNotSupported
from cdi.api.names import ANN_CONTENT_TYPE, temporary_claim
from cdi.api.phases import EventReason, Phase
from cdi.reconcile.actions import Action, CreateObject
from cdi.reconcile.clone.manifests import build_restored_pvc
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, LABEL_TEMPORARY, ClonePlanRecord
from cdi.reconcile.clone.source import facts, find
from cdi.reconcile.clone.status import clone_in_progress, clone_pending, clone_waiting, source_replaced
from cdi.reconcile.clone.types import CloneSource, SourceKind
from cdi.reconcile.context import Lister, ReconcileContext
from cdi.reconcile.datavolume.rebind import recreate_prime
from cdi.reconcile.datavolume.result import Result, failed
from cdi.reconcile.pods.job import content_type
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import PVC, Clone, Pending, Rejected


def temporary_name(kind: SourceKind, uid: str) -> str:
    """Return the name of the temporary PVC of a source snapshot; empty for a PVC, which is read directly."""
    return temporary_claim(uid) if kind == "VolumeSnapshot" else ""


def class_for(context: ReconcileContext, target: PVC, found: CloneSource) -> StorageClass | None:
    """Return the class for restoring a snapshot, whose provisioner must be the snapshot's driver.

    In order of preference: the class of the snapshot's source volume, the target's, the default class, the first by
    name.
    """
    wished = (found.storage_class, target.storage_class)

    def order(one: StorageClass) -> tuple[int, bool, str]:
        return wished.index(one.name) if one.name in wished else len(wished), not one.is_default, one.name

    return min(facts(context).classes(found.driver), key=order, default=None) if found.driver else None


def cannot_restore(context: ReconcileContext, target: PVC, found: CloneSource) -> Rejected | None:
    """Return why the source cannot be copied; None if it can."""
    if found.kind != "VolumeSnapshot" or class_for(context, target, found) is not None:
        return None
    driver = found.driver or "an unknown provisioner"
    return Rejected.because(
        SourceNotSupported(
            f"the snapshot has to be copied by pods and cannot be read: its driver is {driver}, and there is no "
            "StorageClass of that provisioner",
            where=found.place,
            remedy=f"create a StorageClass with provisioner {found.driver}"
            if found.driver
            else "check its VolumeSnapshotContent, which names no driver",
        )
    )


def restore_snapshot(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result | None:
    """Return the state until the snapshot can be read; None once a source pod can be created."""
    made, phase = _restored(context.objects, record), Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS
    if made is None:
        found = find(context, origin)
        if isinstance(found, Pending):
            return clone_pending(claim, found)
        if isinstance(found, CloneSource) and found.uid != record.source:
            # The record is for an earlier snapshot of the same name.
            return source_replaced(claim, found.place)
        refused = found if isinstance(found, Rejected) else cannot_restore(context, claim, found)
        if refused is not None:
            return failed(claim, refused.failure)
        message = f"restoring the snapshot to PVC {record.restored} to copy it"
        return clone_in_progress(claim, phase, message, actions=restore(context, claim, origin))
    if made.deleting or made.phase == "Lost":
        message = f"PVC {made.name}, restored from the snapshot, is being deleted and will be recreated"
        return clone_waiting(claim, message, *recreate_prime(made))
    storage_class = context.objects.storage_class(made.storage_class) if made.storage_class else None
    if made.phase == "Bound" or (storage_class is not None and storage_class.wait_for_first_consumer):
        # With WaitForFirstConsumer it is provisioned for the source pod.
        return None
    by = storage_class.provisioner if storage_class is not None else "the storage"
    message = made.provisioning_message or f"waiting for PVC {made.name} to be restored from the snapshot by {by}"
    # Events of this PVC trigger only the first clone that uses it, so the others poll.
    return replace(clone_in_progress(claim, phase, message), requeue_after=context.retries.patience)


def restore(context: ReconcileContext, claim: PVC, origin: Clone) -> tuple[Action, ...]:
    """Create the temporary PVC if it does not exist but the snapshot does."""
    record = ClonePlanRecord.read(claim)
    if record is None or not record.restored or _restored(context.objects, record) is not None:
        return ()
    found = find(context, origin)
    if not isinstance(found, CloneSource) or found.uid != record.source:
        return ()
    storage_class = class_for(context, claim, found)
    if storage_class is None:
        return ()
    return (CreateObject(body=build_restored_pvc(context, claim, found, record.restored, storage_class)),)


def resolve_restored(context: ReconcileContext, claim: PVC, origin: Clone) -> CloneSource | Pending | Rejected:
    """Return what the source pod mounts: the source itself, or the PVC restored from a snapshot."""
    record = ClonePlanRecord.read(claim)
    if record is None or not record.restored:
        return find(context, origin)
    made = _restored(context.objects, record)
    if made is None or made.deleting or made.phase == "Lost":
        message = f"PVC {record.restored}, restored from the snapshot, does not exist yet"
        return Pending(reason=EventReason.CLONE_WITHOUT_SOURCE, message=message)
    archive = ContentType.ARCHIVE in (made.annotations.get(ANN_CONTENT_TYPE), content_type(context.datavolume))
    return CloneSource(
        kind="PersistentVolumeClaim",
        namespace=made.namespace,
        name=made.name,
        # The content is the snapshot's, even if the PVC was recreated.
        uid=record.source,
        volume_mode=made.volume_mode,
        storage_class=made.storage_class,
        driver="",
        size=made.capacity,
        asked=made.requested,
        labels=made.labels,
        annotations={ANN_CONTENT_TYPE: ContentType.ARCHIVE.value} if archive else {},
    )


def _restored(objects: Lister, record: ClonePlanRecord) -> PVC | None:
    made = objects.claim(record.namespace, record.restored)
    marked = (
        made is not None
        and made.labels.get(LABEL_TEMPORARY) == "true"
        and made.annotations.get(ANN_SOURCE_UID) == record.source
    )
    return made if marked else None
