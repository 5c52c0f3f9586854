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
    """The DataVolume that each import makes."""
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
    """The service account that looks for a new image."""
    created_by: str | None = None
    """The user who made this object, as JSON; set by the server."""


class ImportStatus(Model):
    """An import under way."""

    data_volume_name: str
    """Its DataVolume."""
    digest: str
    """The image that it imports."""


class DataImportCronStatus(Model):
    """Observed state: the versions found and the imports done."""

    current_imports: list[ImportStatus] | None = None
    """Imports under way; one at most."""
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


class DataImportCron(KubeObject):
    """Looks at an image on a schedule and imports it again whenever it changes."""

    spec: DataImportCronSpec
    """Desired state: the image to import and the schedule of the checks."""
    status: DataImportCronStatus | None = None
    """Observed state; written by the controller."""
