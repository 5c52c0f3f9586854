"""Temporary PVCs restored from snapshots, for host-assisted clones, since pods cannot read a snapshot.

    record ── PVC tmp-pvc-<the snapshot's uid> ── copied by pods ── deleted with the last clone that reads it

All concurrent clones of a snapshot share one PVC. It is in the snapshot's namespace, where the target cannot own it, so
it has a label and is deleted like the temporary snapshots (`cdi.reconcile.clone.temporaries`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cdi.api.datavolume import ContentType
from cdi.api.errors import SourceNotSupported
from cdi.api.names import ANN_CONTENT_TYPE, temporary_claim
from cdi.api.phases import EventReason, Phase, Reason
from cdi.reconcile.actions import Action, CreateObject
from cdi.reconcile.clone.manifests import build_restored
from cdi.reconcile.clone.record import ANN_SOURCE_UID, LABEL_TEMPORARY, CloneRecord
from cdi.reconcile.clone.source import Found, facts, find
from cdi.reconcile.clone.states import underway, waiting
from cdi.reconcile.decision import Decision, failed
from cdi.reconcile.job import content_type
from cdi.reconcile.origin import Clone, Refuse, Wait
from cdi.reconcile.population import replaced

if TYPE_CHECKING:
    from cdi.reconcile.clone.facts import SourceKind
    from cdi.reconcile.storageclass import StorageClass
    from cdi.reconcile.world import Claim, World


def restored_name(kind: SourceKind, uid: str) -> str:
    """Return the name of the temporary PVC of a source snapshot; empty for a PVC, which is read directly."""
    return temporary_claim(uid) if kind == "VolumeSnapshot" else ""


def class_for(world: World, target: Claim, found: Found) -> StorageClass | None:
    """Return the class for restoring a snapshot, whose provisioner must be the snapshot's driver.

    In order of preference: the class of the snapshot's source volume, the target's, the default class, the first by
    name.
    """
    wished = (found.storage_class, target.storage_class)

    def order(one: StorageClass) -> tuple[int, bool, str]:
        return wished.index(one.name) if one.name in wished else len(wished), not one.is_default, one.name

    return min(facts(world).classes(found.driver), key=order, default=None) if found.driver else None


def unreadable(world: World, target: Claim, found: Found) -> Refuse | None:
    """Return why the source cannot be copied; None if it can."""
    if found.kind != "VolumeSnapshot" or class_for(world, target, found) is not None:
        return None
    driver = found.driver or "an unknown provisioner"
    return Refuse.because(
        SourceNotSupported(
            f"the snapshot has to be copied by pods and cannot be read: its driver is {driver}, and there is no "
            "StorageClass of that provisioner",
            where=found.place,
            remedy=f"create a StorageClass with provisioner {found.driver}"
            if found.driver
            else "check its VolumeSnapshotContent, which names no driver",
        )
    )


def is_known(world: World, origin: Clone, record: CloneRecord) -> bool:
    """Return whether the record is for this very snapshot, and not for an earlier one of the same name."""
    if _restored(world, record) is not None:
        return True
    found = find(world, origin)
    return not isinstance(found, Found) or found.uid == record.source


def restoring(world: World, claim: Claim, origin: Clone, record: CloneRecord) -> Decision | None:
    """Return the state until the snapshot can be read; None once a source pod can be created."""
    made, phase = _restored(world, record), Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS
    if made is None:
        found = find(world, origin)
        if isinstance(found, Wait):
            return waiting(claim, found)
        refused = found if isinstance(found, Refuse) else unreadable(world, claim, found)
        if refused is not None:
            return failed(claim, refused.failure)
        message = f"restoring the snapshot to PVC {record.restored} to copy it"
        return underway(claim, phase, message, actions=restore(world, claim, origin))
    if made.deleting or made.phase == "Lost":
        message = f"PVC {made.name}, restored from the snapshot, is being deleted and will be recreated"
        return replace(waiting(claim, Wait(reason=Reason.PENDING, message=message)), actions=replaced(made))
    storage_class = world.objects.storage_class(made.storage_class) if made.storage_class else None
    if made.phase == "Bound" or (storage_class is not None and storage_class.waits):
        # With WaitForFirstConsumer it is provisioned for the source pod.
        return None
    by = storage_class.provisioner if storage_class is not None else "the storage"
    message = made.why_pending or f"waiting for PVC {made.name} to be restored from the snapshot by {by}"
    # Events of this PVC trigger only the first clone that uses it, so the others poll.
    return replace(underway(claim, phase, message), requeue_after=world.retries.patience)


def restore(world: World, claim: Claim, origin: Clone) -> tuple[Action, ...]:
    """Create the temporary PVC if it does not exist but the snapshot does."""
    record = CloneRecord.read(claim)
    if record is None or not record.restored or _restored(world, record) is not None:
        return ()
    found = find(world, origin)
    if not isinstance(found, Found) or found.uid != record.source:
        return ()
    storage_class = class_for(world, claim, found)
    if storage_class is None:
        return ()
    return (CreateObject(body=build_restored(world, claim, found, record.restored, storage_class)),)


def readable(world: World, claim: Claim, origin: Clone) -> Found | Wait | Refuse:
    """Return what the source pod mounts: the source itself, or the PVC restored from a snapshot."""
    record = CloneRecord.read(claim)
    if record is None or not record.restored:
        return find(world, origin)
    made = _restored(world, record)
    if made is None or made.deleting or made.phase == "Lost":
        message = f"PVC {record.restored}, restored from the snapshot, does not exist yet"
        return Wait(reason=EventReason.CLONE_WITHOUT_SOURCE, message=message)
    archive = ContentType.ARCHIVE in (made.annotations.get(ANN_CONTENT_TYPE), content_type(world.datavolume))
    return Found(
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


def _restored(world: World, record: CloneRecord) -> Claim | None:
    made = world.objects.claim(record.namespace, record.restored)
    marked = (
        made is not None
        and made.labels.get(LABEL_TEMPORARY) == "true"
        and made.annotations.get(ANN_SOURCE_UID) == record.source
    )
    return made if marked else None
