"""Storage class in force for the imports of a DataImportCron, and what follows from a change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cdi.api.annotations import STORAGE_CLASS
from cdi.api.names import (
    ANN_CRON_READ_WRITE_ONCE,
    ANN_CRON_SNAPSHOT_CLASS,
    LABEL_DATA_IMPORT_CRON,
)
from cdi.api.storageprofile import CronSourceFormat, StorageProfile
from cdi.reconcile.actions import Action
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.objects import VersionObjects, delete_data_volume, delete_snapshot, delete_volume
from cdi.reconcile.storage.classes import StorageClass

CLASS_FROM_PROFILE: Final = "VolumeSnapshotClass selected according to StorageProfile"
DEFAULT_CLASS: Final = "Default VolumeSnapshotClass selected"
FIRST_CLASS: Final = "First VolumeSnapshotClass selected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The storage class in force, with what its StorageProfile says of imports."""

    storage_class: StorageClass | None = None
    """None if the template names no class and there is no default class, or if the named class does not exist."""
    explicit: str | None = None
    """Class that the template names."""
    format: CronSourceFormat = CronSourceFormat.PVC
    snapshot_class: str = ""
    """VolumeSnapshotClass of snapshots; empty if there is none."""
    snapshot_class_message: str = ""
    """How the VolumeSnapshotClass was selected; empty if there is none."""
    read_write_once: bool = False
    """Whether imports are ReadWriteOnce unless the template sets access modes."""

    @property
    def name(self) -> str:
        return self.storage_class.name if self.storage_class is not None else ""


def storage_in_force(context: CronContext) -> Storage:
    """Return the storage class of new imports and its settings."""
    template = context.cron.spec.template.spec
    explicit = template.claim.storage_class_name if template.claim is not None else None
    if not context.platform.cluster:
        return Storage(explicit=explicit)
    if explicit:
        found = context.objects.storage_class(explicit)
    elif explicit is None:
        found = context.objects.default_storage_class(virtualization=True)
    else:
        found = None
    if found is None:
        # Whether snapshots are possible is unknown, so imports stay as they are.
        return Storage(explicit=explicit, format=_last_format(context))
    profile = context.objects.storage_profile(found.name)
    annotations = (profile.metadata.annotations if profile is not None else None) or {}
    snapshot_class, message = _snapshot_class(context, found, profile, annotations)
    return Storage(
        storage_class=found,
        explicit=explicit,
        format=_format(context, profile),
        snapshot_class=snapshot_class,
        snapshot_class_message=message,
        read_write_once=annotations.get(ANN_CRON_READ_WRITE_ONCE) == "true",
    )


def _last_format(context: CronContext) -> CronSourceFormat:
    status = context.cron.status
    snapshot = status is not None and status.source_format == CronSourceFormat.SNAPSHOT
    return CronSourceFormat.SNAPSHOT if snapshot else CronSourceFormat.PVC


def _format(context: CronContext, profile: StorageProfile | None) -> CronSourceFormat:
    if profile is None or profile.status is None:
        return _last_format(context)  # the profile of a new class is about to be written
    snapshot = profile.status.data_import_cron_source_format == CronSourceFormat.SNAPSHOT
    return CronSourceFormat.SNAPSHOT if snapshot else CronSourceFormat.PVC


def _snapshot_class(
    context: CronContext, found: StorageClass, profile: StorageProfile | None, annotations: Mapping[str, str]
) -> tuple[str, str]:
    """Return the VolumeSnapshotClass for volumes of a class, and how it was selected; both empty if there is none."""
    if named := annotations.get(ANN_CRON_SNAPSHOT_CLASS):
        return named, f"{CLASS_FROM_PROFILE} {named}"
    fitting = sorted(
        (one for one in context.objects.snapshot_classes() if one.driver == found.provisioner),
        key=lambda one: one.name,
    )
    preferred = profile.status.snapshot_class if profile is not None and profile.status is not None else None
    if preferred and any(one.name == preferred for one in fitting):
        return preferred, f"{CLASS_FROM_PROFILE} {preferred}"
    default = next((one.name for one in fitting if one.default), None)
    if default is not None:
        return default, f"{DEFAULT_CLASS} {default}"
    return (fitting[0].name, f"{FIRST_CLASS} {fitting[0].name}") if fitting else ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStep:
    """What a change of the storage class requires."""

    actions: tuple[Action, ...] = ()
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    in_progress: bool = False
    """Whether volumes of the old class are being deleted; nothing is imported until they are gone."""


def plan_storage_class(
    context: CronContext, storage: Storage, wanted: VersionObjects | None, *, keep: str = ""
) -> ClassStep:
    """Delete the newest version if it is on another class than the one in force, so that it is imported again.

    Older versions stay where they are.

    Args:
        context: The DataImportCron.
        storage: The class in force.
        wanted: Objects of the version with the desired digest; None if there is none.
        keep: Why the version must not be deleted now; empty if it may.

    """
    if storage.storage_class is None:
        return ClassStep()
    before = STORAGE_CLASS.read(context.annotations)
    remember: dict[str, str | None] = {} if before == storage.name else {**STORAGE_CLASS.write(storage.name)}
    if before is None:
        claim = wanted.claim if wanted is not None else None
        if (
            claim is not None
            and claim.phase == "Pending"
            and claim.labels.get(LABEL_DATA_IMPORT_CRON) == context.name
            and claim.storage_class is not None
            and claim.storage_class != storage.name
        ):
            # It waits for a class that is not the default any more, or was created when there was none.
            pending = delete_volume(claim)
            return ClassStep(actions=(pending,), in_progress=True)
        return ClassStep(annotations=remember)
    if before == storage.name or wanted is None or not wanted.exist:
        return ClassStep(annotations=remember)
    if keep:
        return ClassStep()
    return ClassStep(actions=(*delete_snapshot(wanted), *delete_data_volume(wanted)), in_progress=True)
