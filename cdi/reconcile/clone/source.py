"""Sources of clones, and whether they can be cloned now."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from cdi.api.errors import InvalidManifest, TargetTooSmall
from cdi.api.image_facts import DISK_SIZE, VOLUME_SIZE
from cdi.api.names import (
    ANN_PERMISSIVE_CLONE,
    ANN_SNAPSHOT_ADVISED_RESTORE_SIZE,
    ANN_SNAPSHOT_SOURCE_VOLUME_MODE,
    means_true,
)
from cdi.api.overhead import required, usable
from cdi.api.phases import EventReason, Reason
from cdi.api.quantity import Quantity, human
from cdi.reconcile.clone.lister import CloneLister
from cdi.reconcile.clone.strategy import Source
from cdi.reconcile.clone.types import CloneSource, Snapshot
from cdi.reconcile.context import Lister, ReconcileContext
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.source import check_clone_source, source_missing
from cdi.reconcile.storage.claim_defaults import overhead_of
from cdi.reconcile.types import PVC, Clone, Pending, Rejected

USERS_SHOWN = 3


def planner_source(context: ReconcileContext, found: CloneSource, target_class: str | None) -> Source:
    """Return a source as input of the planner."""
    clones = facts(context)
    return Source(
        kind=found.kind,
        volume_mode=found.volume_mode,
        size=found.size,
        driver=found.driver,
        snapshot_class=clones.snapshot_class(target_class, found.driver) if found.driver else None,
    )


def facts(context: ReconcileContext) -> CloneLister:
    """Return the facts for clones, which are always present in a cluster."""
    assert context.clones is not None
    return context.clones


def find(context: ReconcileContext, origin: Clone) -> CloneSource | Pending | Rejected:
    """Return the source if it exists and its content is complete.

    Whether it is in use is checked separately (`source_in_use`).
    """
    return _snapshot(context, origin) if origin.kind == "VolumeSnapshot" else _claim(context, origin)


def source_in_use(objects: Lister, found: CloneSource) -> Pending | None:
    """Return what to wait for if pods use the source, since data written during the clone may be copied partly."""
    if found.kind == "VolumeSnapshot":
        return None
    users = objects.users(found.namespace, found.name)
    if not users:
        return None
    more = f" and {len(users) - USERS_SHOWN} more" if len(users) > USERS_SHOWN else ""
    return Pending(
        reason=EventReason.CLONE_SOURCE_IN_USE,
        message=f"the source PVC {found.place} is in use by pod {', '.join(users[:USERS_SHOWN])}{more}. "
        "Try: stop it, or clone a snapshot of the volume; the clone starts automatically",
        event=EventReason.CLONE_SOURCE_IN_USE,
    )


def target_too_small(
    context: ReconcileContext,
    found: CloneSource,
    size: int | None,
    volume_mode: str,
    storage_class: str | None,
    annotations: Mapping[str, str],
) -> Rejected | None:
    """Return a failure if a PVC of `size` bytes with these annotations is too small for the source.

    The size of a disk in a filesystem is known only for imported volumes. Otherwise it is determined while copying to a
    block device, before anything is written.
    """
    wanted = found.asked if found.asked is not None else found.size
    permissive = (context.datavolume.metadata.annotations or {}, annotations)
    if size is None or wanted is None or any(means_true(one.get(ANN_PERMISSIVE_CLONE)) for one in permissive):
        return None
    room = size
    if found.volume_mode == "Filesystem" and volume_mode == "Block":
        disk = detected_size(context.config, found)
        if disk is None:
            return None
        wanted = disk
    if found.volume_mode == "Block" and volume_mode == "Filesystem":
        room = usable(size, overhead_of(storage_class, context.config))
        wanted = found.size or wanted
    if room >= wanted:
        return None
    what = "PVC" if found.kind == "PersistentVolumeClaim" else "VolumeSnapshot"
    return Rejected.because(
        TargetTooSmall(
            # KubeVirt's CDI's words first, which programs compare.
            f"target resources requests storage size is smaller than the source {room} < {wanted}: the source {what} "
            f"has {wanted} bytes ({human(wanted)}), only {room} bytes ({human(room)}) are requested",
            where=found.place,
            remedy=f"request at least {human(wanted)}, or set the annotation {ANN_PERMISSIVE_CLONE} to true",
        )
    )


def detected_size(config: ResolvedConfig, found: CloneSource) -> int | None:
    """Return the recorded size in bytes of the disk in a source; None if there is none or it may be outdated.

    It may be outdated if the volume has been expanded since, because the disk may have been as well.
    """
    text = found.annotations.get(DISK_SIZE, "")
    if found.kind != "PersistentVolumeClaim" or found.asked is None or not (text.isascii() and text.isdigit()):
        return None
    size = int(text[:20])
    volume_size = found.annotations.get(VOLUME_SIZE)
    if volume_size is not None:
        return size if volume_size == str(found.asked) else None
    # Importers of earlier versions recorded the disk's size alone, and made it as large as the request allowed.
    return size if size >= usable(found.asked, overhead_of(found.storage_class, config)) else None


def size_for(config: ResolvedConfig, found: CloneSource, volume_mode: str, storage_class: str | None) -> int | None:
    """Return the size in bytes for a clone without a requested size; None if the source's size is unknown."""
    return clone_size(found, volume_mode, overhead_of(storage_class, config))


def clone_size(found: CloneSource, volume_mode: str, overhead: Fraction) -> int | None:
    """Return what `size_for` returns, for a target of this volume mode and with this file system overhead."""
    size, advised = _own_size(found, volume_mode, overhead), _advised_size(found)
    return size if advised is None else max(size or 0, advised)


def _advised_size(found: CloneSource) -> int | None:
    """Return the restore size in bytes that the snapshot's creator advised; the storage may report none, or less."""
    text = found.annotations.get(ANN_SNAPSHOT_ADVISED_RESTORE_SIZE)
    if found.kind != "VolumeSnapshot" or text is None:
        return None
    try:
        size = Quantity.parse(text).bytes
    except InvalidManifest:
        return None
    return size if size > 0 else None


def _own_size(found: CloneSource, volume_mode: str, overhead: Fraction) -> int | None:
    if found.size is None:
        return None
    if found.volume_mode in ("", volume_mode):
        return found.asked if found.asked is not None else found.size
    if volume_mode == "Filesystem":
        return required(found.size, overhead)
    # The volume's size is an upper bound for the disk in its filesystem.
    return found.size


def _claim(context: ReconcileContext, origin: Clone) -> CloneSource | Pending | Rejected:
    claim = check_clone_source(context, origin)
    if not isinstance(claim, PVC):
        return claim
    objects = context.objects
    storage_class = objects.storage_class(claim.storage_class) if claim.storage_class else None
    return CloneSource(
        kind="PersistentVolumeClaim",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        volume_mode=claim.volume_mode,
        storage_class=claim.storage_class,
        driver=storage_class.provisioner if storage_class is not None else "",
        size=claim.capacity,
        asked=_least(claim),
        labels=claim.labels,
        annotations=claim.annotations,
    )


def _least(claim: PVC) -> int | None:
    if claim.requested is None or claim.capacity is None:
        return claim.capacity if claim.requested is None else claim.requested
    return min(claim.requested, claim.capacity)


def _snapshot(context: ReconcileContext, origin: Clone) -> CloneSource | Pending:
    place = f"{origin.namespace}/{origin.name}"
    snapshot = facts(context).snapshot(origin.namespace, origin.name)
    if snapshot is None or snapshot.deleting:
        return source_missing("snapshot", origin, deleting=snapshot is not None)
    if not snapshot.ready:
        why = f": {snapshot.error}" if snapshot.error else ""
        return Pending(reason=Reason.SNAPSHOT_NOT_READY, message=f"the source VolumeSnapshot {place} is not ready{why}")
    return of_snapshot(snapshot)


def of_snapshot(snapshot: Snapshot) -> CloneSource:
    return CloneSource(
        kind="VolumeSnapshot",
        namespace=snapshot.namespace,
        name=snapshot.name,
        uid=snapshot.uid,
        volume_mode=snapshot.annotations.get(ANN_SNAPSHOT_SOURCE_VOLUME_MODE) or snapshot.volume_mode,
        storage_class=snapshot.storage_class or None,
        driver=snapshot.driver,
        size=snapshot.size,
        asked=snapshot.size,
        labels=snapshot.labels,
        annotations=snapshot.annotations,
    )
