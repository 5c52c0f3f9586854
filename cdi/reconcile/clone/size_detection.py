"""Detection of the disk's size in a source filesystem, for clones without a requested size.

    source's annotation image.diskSize (from an import) ── or a size-detection pod ── annotation of the DataVolume

A target on a block device, or in a class with a higher filesystem overhead than the source's, is sized for the disk and
not for the volume around it. The detected size is stored on the DataVolume, since there is no PVC yet. If it cannot be
detected, the source volume's size is used as the upper bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cdi.api.annotations import SOURCE_DISK_SIZE
from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.errors import Retry
from cdi.api.names import ANN_CONTENT_TYPE
from cdi.api.phases import Reason
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, PatchObject
from cdi.reconcile.clone.manifests import build_size_detection_pod, measurement_pod
from cdi.reconcile.clone.source import detected_size, facts, source_in_use
from cdi.reconcile.clone.types import CloneSource, SizeDetectionPod
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.result import Result, pending
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.storage.claim_defaults import overhead_of
from cdi.reconcile.types import Pending

ANNOTATION: Final = SOURCE_DISK_SIZE.key
REQUEUE_DELAY: Final = 5.0
"""Seconds before a failed size-detection pod is recreated."""


def depends_on_disk(config: ResolvedConfig, found: CloneSource, volume_mode: str, storage_class: str | None) -> bool:
    """Return whether a target without a requested size is sized for the disk in the source, not for its volume."""
    if found.kind != "PersistentVolumeClaim" or found.volume_mode != "Filesystem":
        return False
    if found.annotations.get(ANN_CONTENT_TYPE) == ContentType.ARCHIVE:
        return False
    own, others = overhead_of(storage_class, config), overhead_of(found.storage_class, config)
    return volume_mode == "Block" or own > others


def detect_size(context: ReconcileContext, found: CloneSource) -> int | Result | None:
    """Return the size in bytes of the disk in a source; None if undetectable, a result until it is detected."""
    known = detected_size(context.config, found)
    if known is not None:
        return known
    said = parse_size_annotation(context.datavolume, found.uid)
    if said is not None:
        return said or None
    users = source_in_use(context.objects, found)
    if users is not None:
        return pending(None, users)
    name = measurement_pod(context.datavolume)
    message = f"detecting the virtual size of PVC {found.namespace}/{found.name} with pod {name}"
    pod = facts(context).size_detection_pod(found.namespace, name)
    actions: tuple[Action, ...] = ()
    requeue: float | None = None
    if pod is None:
        actions = (CreateObject(body=build_size_detection_pod(context, found)),)
    elif pod.deleting:
        message = f"Pod {name} is being deleted; it will be recreated automatically"
    elif pod.source != found.uid:
        actions = (_gone(pod, found, name),)
    elif pod.outcome is None:
        message = f"{message}; {pod.message}" if pod.message else message
    elif pod.outcome.failure is None:
        actions = (_note(context.datavolume, found, pod.outcome.disk_size or 0),)
    elif pod.outcome.failure.retry is not Retry.BACKOFF:
        actions = (_note(context.datavolume, found, None),)
    else:
        message = f"{message}; the last attempt failed: {pod.outcome.failure.message}"
        left = max(0.0, pod.ended + REQUEUE_DELAY - context.now)
        actions, requeue = (() if left else (_gone(pod, found, name),)), left or None
    return replace(
        pending(None, Pending(reason=Reason.PENDING, message=message)), actions=actions, requeue_after=requeue
    )


def parse_size_annotation(dv: DataVolume, uid: str) -> int | None:
    """Return the recorded size in bytes of the disk in the PVC `uid`; 0 if undetectable, None if not recorded."""
    return SOURCE_DISK_SIZE.read(dv.metadata.annotations or {}, uid)


def unknown_size(uid: str) -> dict[str, str]:
    """Return the annotation of a DataVolume for a source PVC `uid` whose disk size cannot be detected."""
    return SOURCE_DISK_SIZE.write(None, uid)


def is_wanted(pod: SizeDetectionPod, dv: DataVolume | None) -> bool:
    """Return whether the pod's DataVolume still exists and has not recorded the result."""
    return (
        dv is not None
        and dv.metadata.deletion_timestamp is None
        and dv.metadata.uid == pod.target
        and parse_size_annotation(dv, pod.source) is None
    )


def _note(dv: DataVolume, found: CloneSource, size: int | None) -> PatchObject:
    return PatchObject.of_data_volume(dv, annotations=dict(SOURCE_DISK_SIZE.write(size, found.uid)))


def _gone(pod: SizeDetectionPod, found: CloneSource, name: str) -> DeleteObject:
    return DeleteObject(plural="pods", namespace=found.namespace, name=name, uid=pod.uid)
