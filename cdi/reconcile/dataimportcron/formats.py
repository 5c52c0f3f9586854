"""Formats in which versions are kept: PVC or VolumeSnapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cdi.api.annotations import GOLDEN_LAST_CLONED, GOLDEN_RECORD, LAST_USE
from cdi.api.errors import InvalidManifest
from cdi.api.names import (
    ANN_SNAPSHOT_ADVISED_RESTORE_SIZE,
    ANN_SNAPSHOT_SOURCE_VOLUME_MODE,
    COMMON_LABELS,
    LABEL_COMPONENT,
    propagates,
)
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import CronSourceFormat
from cdi.reconcile.actions import Action, CreateObject, Event, ObjectEvent
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.labels import last_use, missing, resource_labels
from cdi.reconcile.dataimportcron.objects import VersionObjects, delete_data_volume, delete_snapshot, patch_volume
from cdi.reconcile.dataimportcron.storage_class import Storage
from cdi.reconcile.types import PVC

SNAPSHOT_CLASS_SELECTED: Final = "VolumeSnapshotClassSelected"
CARRIED: Final = (GOLDEN_RECORD.key, GOLDEN_LAST_CLONED.key)
"""Annotations of a version's PVC that its snapshot takes over."""

Source = Mapping[str, Any]
"""Value of ``spec.source`` of a DataSource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatStep:
    """What is needed for the current version to have the format in force."""

    actions: tuple[Action, ...] = ()
    events: tuple[ObjectEvent, ...] = ()


def expects_snapshot(objects: VersionObjects, storage: Storage) -> bool:
    """Return whether a snapshot of the current version's PVC is, or will be, made."""
    claim = objects.claim
    if storage.format != CronSourceFormat.SNAPSHOT or storage.storage_class is None:
        return False
    # A PVC of another class is about to be replaced.
    return claim is not None and claim.storage_class in (None, storage.name)


def plan_format(context: CronContext, objects: VersionObjects, storage: Storage) -> FormatStep:
    """Create the snapshot of the current version's PVC, or complete the annotations of an existing one."""
    snapshot, claim = objects.snapshot, objects.complete_claim
    if snapshot is not None:
        return FormatStep(actions=_annotate(context, snapshot, objects.claim))
    if claim is None or not expects_snapshot(objects, storage):
        return FormatStep()
    events: tuple[ObjectEvent, ...] = ()
    if storage.snapshot_class_message:
        fact = Event(type="Normal", reason=SNAPSHOT_CLASS_SELECTED, message=storage.snapshot_class_message)
        events = (ObjectEvent(plural="persistentvolumeclaims", namespace=claim.namespace, name=claim.name, event=fact),)
    return FormatStep(actions=(CreateObject(body=snapshot_body(context, claim, storage)),), events=events)


def plan_cleanup(
    context: CronContext, objects: VersionObjects, storage: Storage, offered: Sequence[Source]
) -> tuple[Action, ...]:
    """Delete the form of the current version that is not needed any more, once every DataSource offers the other one.

    Args:
        context: The DataImportCron.
        objects: Objects of the current version.
        storage: The storage class in force.
        offered: What the DataSources refer to now.

    """
    if context.objects.clones_in_progress(context.namespace, objects.name):
        return ()
    if storage.format == CronSourceFormat.SNAPSHOT:
        unused = objects.ready_snapshot is not None and not _offers(offered, "pvc", objects.name)
        return delete_data_volume(objects) if unused and expects_snapshot(objects, storage) else ()
    unused = objects.complete_claim is not None and not _offers(offered, "snapshot", objects.name)
    return delete_snapshot(objects) if unused and storage.storage_class is not None else ()


def source_of(context: CronContext, objects: VersionObjects, storage: Storage, *, current: bool) -> Source | None:
    """Return what a DataSource refers to in order to offer a version; None while that is not ready.

    Args:
        context: The DataImportCron.
        objects: Objects of the version.
        storage: The storage class in force.
        current: Whether it is the current version, which is converted to the format in force.

    """
    place = {"namespace": context.namespace, "name": objects.name}
    claim, snapshot = objects.complete_claim, objects.ready_snapshot
    if storage.format == CronSourceFormat.PVC:
        if claim is not None:
            return {"pvc": place}
        return {"snapshot": place} if snapshot is not None else None
    if snapshot is not None:
        return {"snapshot": place}
    if claim is None or (current and expects_snapshot(objects, storage)):
        return None
    return {"pvc": place}


def _offers(sources: Sequence[Source], form: str, name: str) -> bool:
    return any((source.get(form) or {}).get("name") == name for source in sources)


# --- the VolumeSnapshot -----------------------------------------------------------------------------------------


def snapshot_body(context: CronContext, claim: PVC, storage: Storage) -> dict[str, Any]:
    """Return the VolumeSnapshot of a version's PVC, which has its name."""
    labels = {**COMMON_LABELS, LABEL_COMPONENT: "", **resource_labels(context)}
    labels |= {name: text for name, text in claim.labels.items() if propagates(name) and name not in labels}
    spec: dict[str, Any] = {"source": {"persistentVolumeClaimName": claim.name}}
    if storage.snapshot_class:
        spec["volumeSnapshotClassName"] = storage.snapshot_class
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": claim.name,
            "namespace": context.namespace,
            "labels": labels,
            "annotations": {
                **LAST_USE.write(LAST_USE.read(claim.annotations) or last_use(context.now)),
                ANN_SNAPSHOT_SOURCE_VOLUME_MODE: claim.volume_mode,
                **_restore_size(context, claim, None),
                **{name: claim.annotations[name] for name in CARRIED if name in claim.annotations},
            },
        },
        "spec": spec,
    }


def _annotate(context: CronContext, snapshot: Snapshot, claim: PVC | None) -> tuple[Action, ...]:
    wanted = dict(_restore_size(context, claim, snapshot))
    mode = claim.volume_mode if claim is not None else _template_mode(context)
    if mode and ANN_SNAPSHOT_SOURCE_VOLUME_MODE not in snapshot.annotations:
        wanted[ANN_SNAPSHOT_SOURCE_VOLUME_MODE] = mode
    if claim is not None:
        wanted |= {name: claim.annotations[name] for name in CARRIED if name in claim.annotations}
    annotations = missing(wanted, snapshot.annotations)
    return () if snapshot.deleting else patch_volume(snapshot, annotations=annotations)


def _restore_size(context: CronContext, claim: PVC | None, snapshot: Snapshot | None) -> dict[str, str]:
    """Return the annotation with the size that volumes restored from the snapshot need at least."""
    template = context.cron.spec.template.spec.claim
    requests = (template.resources.requests if template is not None and template.resources is not None else None) or {}
    asked = requests.get("storage")
    size = asked.bytes if asked is not None else 0
    if size <= 0:
        size = (claim.requested if claim is not None else None) or 0
    restored = (snapshot.size if snapshot is not None else None) or 0
    known = _known_size(snapshot)
    if max(size, restored) <= known:
        return {}
    if restored > size:
        return {ANN_SNAPSHOT_ADVISED_RESTORE_SIZE: Quantity.of_bytes(restored).text}
    text = asked.text if asked is not None and asked.bytes == size else Quantity.of_bytes(size).text
    return {ANN_SNAPSHOT_ADVISED_RESTORE_SIZE: text}


def _known_size(snapshot: Snapshot | None) -> int:
    text = snapshot.annotations.get(ANN_SNAPSHOT_ADVISED_RESTORE_SIZE) if snapshot is not None else None
    if not text:
        return 0
    try:
        return Quantity.parse(text).bytes
    except InvalidManifest:
        return 0


def _template_mode(context: CronContext) -> str:
    claim = context.cron.spec.template.spec.claim
    return (claim.volume_mode if claim is not None else None) or ""
