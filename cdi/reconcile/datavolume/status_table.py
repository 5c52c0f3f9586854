"""Texts of a DataVolume's conditions and events by operation and phase, letter for letter those of KubeVirt's CDI.

Reconcilers take the texts from here, and `scripts/generate` writes them to ``docs/reference/status.md``
(`cdi.reconcile.datavolume.status_page`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cdi.api.phases import EventReason, Phase, Reason
from cdi.reconcile.datavolume.status import ConditionValue, false, true
from cdi.reconcile.types import Operation

EventType = Literal["Normal", "Warning"]


class Course(enum.StrEnum):
    """Provider of a DataVolume's content."""

    IMPORT = "Import"
    UPLOAD = "Upload"
    CLONE = "Clone"
    EXTERNAL = "External population"
    """The populator of a dataSourceRef that is not one of CDI's, or the storage."""
    EXISTING = "Existing volume"
    """Nothing: the PVC was adopted, populated before, or bound to a volume with content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventText:
    """An event on the DataVolume when it enters a phase."""

    type: EventType
    reason: EventReason
    message: str
    """A template with the fields of `Names`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that texts mention."""

    namespace: str
    name: str
    """The DataVolume's name, which is also that of its PVC."""
    kind: Literal["pvc", "snapshot"] = "pvc"
    """Kind of a clone's source."""
    source: str = ""
    """Namespace and name of a clone's source."""
    populator: str = ""
    """Name of the object that the dataSourceRef names."""

    def fill(self, template: str) -> str:
        """Return the template with the names."""
        return template.format(
            namespace=self.namespace,
            name=self.name,
            kind=self.kind,
            source=self.source,
            populator=self.populator,
        )


def _normal(reason: EventReason, message: str) -> EventText:
    return EventText(type="Normal", reason=reason, message=message)


def _warning(reason: EventReason, message: str) -> EventText:
    return EventText(type="Warning", reason=reason, message=message)


EVENTS: Final[Mapping[tuple[Course, Phase], EventText]] = {
    (Course.IMPORT, Phase.IMPORT_SCHEDULED): _normal(EventReason.IMPORT_SCHEDULED, "Import into {name} scheduled"),
    (Course.IMPORT, Phase.IMPORT_IN_PROGRESS): _normal(
        EventReason.IMPORT_IN_PROGRESS, "Import into {name} in progress"
    ),
    (Course.IMPORT, Phase.SUCCEEDED): _normal(
        EventReason.IMPORT_SUCCEEDED, "Successfully imported into PVC {name}"
    ),
    (Course.IMPORT, Phase.FAILED): _warning(EventReason.IMPORT_FAILED, "Failed to import into PVC {name}"),
    (Course.UPLOAD, Phase.UPLOAD_SCHEDULED): _normal(EventReason.UPLOAD_SCHEDULED, "Upload into {name} scheduled"),
    (Course.UPLOAD, Phase.UPLOAD_READY): _normal(EventReason.UPLOAD_READY, "Upload into {name} ready"),
    (Course.UPLOAD, Phase.SUCCEEDED): _normal(EventReason.UPLOAD_SUCCEEDED, "Successfully uploaded into {name}"),
    (Course.UPLOAD, Phase.FAILED): _warning(EventReason.UPLOAD_FAILED, "Upload into {name} failed"),
    (Course.CLONE, Phase.CLONE_SCHEDULED): _normal(
        EventReason.CLONE_SCHEDULED, "Cloning from {source} into {namespace}/{name} scheduled"
    ),
    (Course.CLONE, Phase.CLONE_IN_PROGRESS): _normal(
        EventReason.CLONE_IN_PROGRESS, "Cloning from {source} into {namespace}/{name} in progress"
    ),
    (Course.CLONE, Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS): _normal(
        EventReason.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS,
        "Creating snapshot for smart-clone is in progress (for pvc {source})",
    ),
    (Course.CLONE, Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS): _normal(
        EventReason.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS,
        "Creating PVC from snapshot source is in progress (for {kind} {source})",
    ),
    (Course.CLONE, Phase.CSI_CLONE_IN_PROGRESS): _normal(
        EventReason.CSI_CLONE_IN_PROGRESS, "CSI Volume clone in progress (for pvc {source})"
    ),
    (Course.CLONE, Phase.EXPANSION_IN_PROGRESS): _normal(
        EventReason.EXPANSION_IN_PROGRESS, "Expanding PersistentVolumeClaim for DataVolume {namespace}/{name}"
    ),
    (Course.CLONE, Phase.PREP_CLAIM_IN_PROGRESS): _normal(
        EventReason.PREP_CLAIM_IN_PROGRESS, "Prepping PersistentVolumeClaim for DataVolume {namespace}/{name}"
    ),
    (Course.CLONE, Phase.REBIND_IN_PROGRESS): _normal(
        EventReason.REBIND_IN_PROGRESS, "Rebinding PersistentVolumeClaim for DataVolume {namespace}/{name}"
    ),
    (Course.CLONE, Phase.NAMESPACE_TRANSFER_IN_PROGRESS): _normal(
        EventReason.NAMESPACE_TRANSFER_IN_PROGRESS,
        "Transferring PersistentVolumeClaim for DataVolume {namespace}/{name}",
    ),
    (Course.CLONE, Phase.SUCCEEDED): _normal(
        EventReason.CLONE_SUCCEEDED, "Successfully cloned from {source} into {namespace}/{name}"
    ),
    (Course.CLONE, Phase.FAILED): _warning(
        EventReason.CLONE_FAILED, "Cloning from {source} into {namespace}/{name} failed"
    ),
    (Course.EXTERNAL, Phase.SUCCEEDED): _normal(
        EventReason.EXTERNAL_POPULATION_SUCCEEDED, "PVC {name} successfully populated by {populator}"
    ),
}  # fmt: skip
"""Events of the phases that have one."""

FAILURES: Final[Mapping[str, str]] = {
    EventReason.ERR_CLAIM_LOST: "PVC {name} lost",
    EventReason.ERR_RESOURCE_EXISTS: 'Resource "{name}" already exists and is not managed by DataVolume',
    EventReason.CLONE_VALIDATION_FAILED: "The clone doesn't meet the validation requirements",
}
"""Messages of events about a final failure that has a reason of its own."""

OPERATIONS: Final[Mapping[Course, Operation]] = {
    Course.IMPORT: "Import",
    Course.UPLOAD: "Upload",
    Course.CLONE: "Clone",
}
"""Operation of the courses in which CDI itself provides the content."""
COMPLETE: Final[Mapping[Operation, ConditionValue]] = {
    "Import": false(Reason.COMPLETED, "Import Complete"),
    "Upload": false(Reason.COMPLETED, "Upload Complete"),
    "Clone": false(Reason.COMPLETED, "Clone Complete"),
}
"""Running after the end of an operation."""

RUNS: Final = "Pod is running"
"""The reason of Running while a pod runs."""
BOUND: Final = true(Reason.BOUND, "PVC {name} Bound")
PENDING: Final = false(Reason.PENDING, "PVC {name} Pending")
PENDING_EVENT: Final = false(Reason.PENDING, "target PVC {name} Pending and {event}")
"""Bound while the provisioner reports a problem of the PVC or its prime PVC."""
PRIME_EVENT: Final = "[{prime}] : {event}"
"""An event of a prime PVC, repeated on its target and the DataVolume."""
LOST: Final = false(Reason.CLAIM_LOST, "Claim Lost")
NOT_FOUND: Final = false(Reason.NOT_FOUND, "No PVC found")
WITHOUT_SOURCE: Final = "The source {kind} {source_name} doesn't exist"
"""Bound, Ready and event of a clone whose source is missing."""
WITHOUT_STORAGE_CLASS: Final = "PVC spec is missing accessMode and no storageClass to choose profile"
"""Start of the event's message if the access modes have to come from a storage class that does not exist."""
