"""How large the disk in a source's file system is, where a clone that names no size depends on that.

    source's annotation image.diskSize (what an import left) ── or a pod that looks ── annotation of the DataVolume

A target on a device, or in a class whose file systems keep more for themselves than the source's, is made for the disk
and not for the volume around it.  What is found out is noted on the DataVolume, since there is no claim yet.  Where it
cannot be found out, the source's volume is the bound: no disk in it is larger.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cdi.api.datavolume import ContentType
from cdi.api.errors import Retry
from cdi.api.names import ANN_CONTENT_TYPE, GROUP
from cdi.api.phases import Reason
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, PatchObject
from cdi.reconcile.clone.manifests import build_measurement, measurement_pod
from cdi.reconcile.clone.source import Found, facts, in_use, noted_disk
from cdi.reconcile.decision import Decision, pending
from cdi.reconcile.origin import Wait
from cdi.reconcile.sizing import overhead_of

if TYPE_CHECKING:
    from cdi.api.datavolume import DataVolume
    from cdi.reconcile.clone.facts import Measurement
    from cdi.reconcile.world import World

ANNOTATION: Final = f"{GROUP}/storage.clone.sourceDiskSize"
"""Of a DataVolume: ``bytes of uid``, the size of the disk in the claim with this uid; ``unknown of uid``."""
PAUSE: Final = 5.0
"""Seconds before another pod looks."""


def depends_on_disk(world: World, found: Found, volume_mode: str, storage_class: str | None) -> bool:
    """Whether a target without a size is as large as the disk in the source, and not as the source."""
    if found.kind != "PersistentVolumeClaim" or found.volume_mode != "Filesystem":
        return False
    if found.annotations.get(ANN_CONTENT_TYPE) == ContentType.ARCHIVE:
        return False
    own, others = overhead_of(storage_class, world.config), overhead_of(found.storage_class, world.config)
    return volume_mode == "Block" or own > others


def disk_of(world: World, found: Found) -> int | Decision | None:
    """Bytes of the disk in a source, None where nobody can tell, or what there is to do until somebody does."""
    known = noted_disk(world, found)
    if known is not None:
        return known
    said = read_note(world.datavolume, found.uid)
    if said is not None:
        return said or None
    users = in_use(world, found)
    if users is not None:
        return pending(None, users)
    name = measurement_pod(world.datavolume)
    message = f"Pod {name} in namespace {found.namespace} looks how large the disk in PVC {found.name} is"
    pod = facts(world).measurement(found.namespace, name)
    actions: tuple[Action, ...] = ()
    requeue: float | None = None
    if pod is None:
        actions = (CreateObject(body=build_measurement(world, found)),)
    elif pod.deleting:
        message = f"Pod {name} is being deleted; another one follows by itself"
    elif pod.source != found.uid:
        actions = (_gone(pod, found, name),)
    elif pod.outcome is None:
        message = f"{message}; {pod.message}" if pod.message else message
    elif pod.outcome.failure is None:
        actions = (_note(world.datavolume, found, str(pod.outcome.disk_size or 0)),)
    elif pod.outcome.failure.retry is not Retry.BACKOFF:
        actions = (_note(world.datavolume, found, "unknown"),)
    else:
        message = f"{message}; the last one failed: {pod.outcome.failure.message}"
        left = max(0.0, pod.ended + PAUSE - world.now)
        actions, requeue = (() if left else (_gone(pod, found, name),)), left or None
    return replace(pending(None, Wait(reason=Reason.PENDING, message=message)), actions=actions, requeue_after=requeue)


def read_note(dv: DataVolume, uid: str) -> int | None:
    """Bytes of the disk in the claim `uid`; 0 where nobody can tell, None where nobody has looked."""
    size, _, of = (dv.metadata.annotations or {}).get(ANNOTATION, "").partition(" of ")
    if of != uid:
        return None
    return int(size) if size.isascii() and size.isdigit() and len(size) < 20 else 0


def unknown(uid: str) -> dict[str, str]:
    """The annotation of a DataVolume for whose source, the claim `uid`, nobody can tell."""
    return {ANNOTATION: f"unknown of {uid}"}


def is_wanted(pod: Measurement, dv: DataVolume | None) -> bool:
    """Its DataVolume is there still, and has not written down what it found."""
    return (
        dv is not None
        and dv.metadata.deletion_timestamp is None
        and dv.metadata.uid == pod.target
        and read_note(dv, pod.source) is None
    )


def _note(dv: DataVolume, found: Found, size: str) -> PatchObject:
    return PatchObject(
        plural="datavolumes",
        namespace=dv.metadata.namespace or "",
        name=dv.metadata.name or "",
        uid=dv.metadata.uid or "",
        annotations={ANNOTATION: f"{size} of {found.uid}"},
    )


def _gone(pod: Measurement, found: Found, name: str) -> DeleteObject:
    return DeleteObject(plural="pods", namespace=found.namespace, name=name, uid=pod.uid)
