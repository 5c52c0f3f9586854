"""StorageProfile: capabilities of a storage class."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from cdi.api.claims import AccessModes
from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Model

MAX_CLAIM_PROPERTY_SETS = 8


class CloneStrategy(enum.StrEnum):
    """Method for cloning volumes of a class."""

    COPY = "copy"
    SNAPSHOT = "snapshot"
    CSI_CLONE = "csi-clone"


class CronSourceFormat(enum.StrEnum):
    """Form in which imports of a DataImportCron are stored."""

    PVC = "pvc"
    SNAPSHOT = "snapshot"


class ClaimPropertySet(Model):
    """A combination that the storage class supports."""

    access_modes: AccessModes
    """Access modes that go with the volume mode."""
    volume_mode: Annotated[str, Field(json_schema_extra={"enum": ["Block", "Filesystem"]})]
    """Block or Filesystem."""


ClaimPropertySets = Annotated[list[ClaimPropertySet], Field(json_schema_extra={"maxItems": MAX_CLAIM_PROPERTY_SETS})]


class StorageProfileSpec(Model):
    """Desired state: settings of the administrator, which override detected ones."""

    clone_strategy: str | None = None
    """copy, snapshot or csi-clone."""
    claim_property_sets: ClaimPropertySets | None = None
    """Access modes and volume modes, the preferred ones first."""
    data_import_cron_source_format: str | None = None
    """pvc or snapshot: how imports of a DataImportCron are kept."""
    snapshot_class: str | None = None
    """The VolumeSnapshotClass for clones by snapshot."""


class StorageProfileStatus(StorageProfileSpec):
    """Observed state: the settings in force."""

    storage_class: str | None = None
    """The StorageClass that this profile describes."""
    provisioner: str | None = None
    """The class's provisioner."""
    conditions: list[Condition] | None = None
    """Recognized: whether the provisioner is known."""


class StorageProfile(KubeObject):
    """Capabilities of a StorageClass; one object for each StorageClass, of the same name."""

    spec: StorageProfileSpec = Field(default_factory=StorageProfileSpec)
    """Desired state: settings of the administrator, which override detected ones."""
    status: StorageProfileStatus | None = None
    """Observed settings; written by the controller."""
