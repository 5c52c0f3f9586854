"""DataImportCron: repeated imports of an image whenever it changes."""

from __future__ import annotations

import enum

from cdi.api.datavolume import DataVolume
from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Int32, Model
from cdi.api.sources import SourcePvc

DEFAULT_IMPORTS_TO_KEEP = 3


class GarbageCollect(enum.StrEnum):
    """Handling of outdated imports."""

    OUTDATED = "Outdated"
    NEVER = "Never"


class RetentionPolicy(enum.StrEnum):
    """Handling of imports and the DataSource when the DataImportCron is deleted."""

    NONE = "None"
    ALL = "All"


class DataImportCronSpec(Model):
    """Desired state: the image to import and the schedule of the checks."""

    template: DataVolume
    """The DataVolume of each import; only its spec is used."""
    schedule: str
    """When to look for a new image, in cron format; empty where something else sets the desired digest."""
    garbage_collect: str | None = None
    """Outdated (the default): older imports are deleted; Never: they stay."""
    imports_to_keep: Int32 | None = None
    """How many imports stay; 3 where none is given."""
    managed_data_source: str
    """The DataSource of the same namespace that always names the newest import."""
    retention_policy: str | None = None
    """All (the default) or None: what stays when this object is deleted."""
    service_account_name: str | None = None
    """The service account whose right to clone a PVC of another namespace is checked; "default" if unset."""


class VersionState(enum.StrEnum):
    """State of one version of a golden image."""

    IMPORTING = "Importing"
    PROVING = "Proving"
    """Imported and verified; the boot proof has not ended yet."""
    AVAILABLE = "Available"
    """May be offered."""
    FAILED = "Failed"
    """The import or the verification failed."""
    UNPROVEN = "Unproven"
    """The boot proof failed."""
    REVOKED = "Revoked"
    REMOVED = "Removed"
    """Only this record is left."""


class ProofStatus(Model):
    """Result of a boot proof."""

    booted: bool
    """Whether the virtual machine came up."""
    message: str | None = None
    """Evidence of the boot, or why it failed."""
    accelerator: str | None = None
    """kvm or tcg."""
    finished: str | None = None
    """RFC 3339; end of the proof."""


class GoldenVersion(Model):
    """One version of the golden image: a digest that was found, and what became of it."""

    name: str
    """Name of its DataVolume, PVC and VolumeSnapshot."""
    digest: str
    """Digest of the source, as in currentImports."""
    state: str
    """Importing, Proving, Available, Failed, Unproven, Revoked or Removed."""
    found: str | None = None
    """RFC 3339; when a poll found it."""
    imported: str | None = None
    """RFC 3339; when its import succeeded."""
    offered: str | None = None
    """RFC 3339; when the managed DataSource last changed to it."""
    source: str | None = None
    """The resolved reference that is imported, without credentials."""
    architecture: str | None = None
    """OCI architecture, if known."""
    verified_by: list[str] | None = None
    """Completed checks of the import."""
    proof: ProofStatus | None = None
    """Result of the boot proof, if one was requested."""
    withheld: bool | None = None
    """Not offered although available, since a rollback left it."""
    reason: str | None = None
    """Code of the failure, or of the revocation or removal."""
    message: str | None = None
    """Cause and remedy."""
    deprecated: str | None = None
    """RFC 3339; from then on clones are warned."""
    end_of_life: str | None = None
    """RFC 3339; end of its support."""
    removed: str | None = None
    """RFC 3339; when its volume was removed. The state of a failed or revoked version does not change then."""


class ChannelStatus(Model):
    """Version that a further DataSource offers."""

    name: str
    """Name of the DataSource."""
    version: str | None = None
    """Name of the version that it offers."""
    since: str | None = None
    """RFC 3339; when it changed to that version."""


class ImportStatus(Model):
    """The newest version that is wanted; it stays after its import has succeeded."""

    data_volume_name: str
    """Its DataVolume."""
    digest: str
    """The image that it imports."""


class DataImportCronStatus(Model):
    """Observed state: the versions found and the imports done."""

    current_imports: list[ImportStatus] | None = None
    """The newest wanted import; one at most."""
    last_imported_pvc: SourcePvc | None = None
    """The newest import."""
    last_execution_timestamp: str | None = None
    """RFC 3339; when the source was last asked."""
    last_import_timestamp: str | None = None
    """RFC 3339; when an import last ended."""
    source_format: str | None = None
    """pvc or snapshot: how imports are kept."""
    conditions: list[Condition] | None = None
    """Progressing and UpToDate, each with the reason."""
    versions: list[GoldenVersion] | None = None
    """History of the golden image, newest first."""
    channels: list[ChannelStatus] | None = None
    """Further DataSources and the versions that they offer."""


class DataImportCron(KubeObject):
    """Looks at an image on a schedule and imports it again whenever it changes."""

    spec: DataImportCronSpec
    """Desired state: the image to import and the schedule of the checks."""
    status: DataImportCronStatus | None = None
    """Observed state; written by the controller."""
