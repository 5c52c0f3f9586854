"""Phases, condition types and reasons in status, which other programs compare."""

from __future__ import annotations

import enum
from typing import Final

TERMINAL_PHASES: Final = ("Succeeded", "Failed")
"""Phases of pods and of DataVolumes after which they make no more progress."""


class Phase(enum.StrEnum):
    """Phase of a DataVolume."""

    UNSET = ""
    PENDING = "Pending"
    PVC_BOUND = "PVCBound"
    WAIT_FOR_FIRST_CONSUMER = "WaitForFirstConsumer"
    PENDING_POPULATION = "PendingPopulation"
    IMPORT_SCHEDULED = "ImportScheduled"
    IMPORT_IN_PROGRESS = "ImportInProgress"
    CLONE_SCHEDULED = "CloneScheduled"
    CLONE_IN_PROGRESS = "CloneInProgress"
    SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS = "SnapshotForSmartCloneInProgress"
    CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS = "CloneFromSnapshotSourceInProgress"
    SMART_CLONE_PVC_IN_PROGRESS = "SmartClonePVCInProgress"
    """Written by earlier versions only; read from their statuses."""
    CSI_CLONE_IN_PROGRESS = "CSICloneInProgress"
    EXPANSION_IN_PROGRESS = "ExpansionInProgress"
    NAMESPACE_TRANSFER_IN_PROGRESS = "NamespaceTransferInProgress"
    PREP_CLAIM_IN_PROGRESS = "PrepClaimInProgress"
    REBIND_IN_PROGRESS = "RebindInProgress"
    UPLOAD_SCHEDULED = "UploadScheduled"
    UPLOAD_READY = "UploadReady"
    PAUSED = "Paused"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"

    @property
    def final(self) -> bool:
        """True if no other phase follows."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


class ClonePhase(enum.StrEnum):
    """Value of the ``clonePhase`` annotation."""

    PENDING = "Pending"
    SNAPSHOT = "Snapshot"
    SNAPSHOT_CLONE = "SnapshotClone"
    CSI_CLONE = "CSIClone"
    HOST_CLONE = "HostClone"
    PREP_CLAIM = "PrepClaim"
    REBIND = "Rebind"
    SUCCEEDED = "Succeeded"
    ERROR = "Error"


class TransferPhase(enum.StrEnum):
    """Phase of an ObjectTransfer."""

    UNSET = ""
    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETE = "Complete"
    ERROR = "Error"


class TransferReason(enum.StrEnum):
    """Reason of an ObjectTransfer's condition Complete, besides the error codes in `cdi.api.errors`."""

    NO_SOURCE = "NoSource"
    NOT_POPULATED = "NotPopulated"
    NOT_BOUND = "NotBound"
    ANNOTATIONS_MISSING = "AnnotationsMissing"
    RESIZING = "Resizing"
    OWNED = "Owned"
    IN_USE = "InUse"
    BEING_DELETED = "BeingDeleted"
    STARTING = "Starting"
    MOVING = "Moving"
    BINDING = "Binding"
    COMPLETE = "TransferComplete"


class ConditionStatus(enum.StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionType(enum.StrEnum):
    READY = "Ready"
    BOUND = "Bound"
    RUNNING = "Running"
    PROGRESSING = "Progressing"
    UP_TO_DATE = "UpToDate"
    POLLED = "Polled"
    """Ours: False while the last poll of a DataImportCron failed; absent otherwise."""
    GOLDEN_SETTINGS = "GoldenSettings"
    """Ours: False while settings or commands of a DataImportCron are not followed; absent otherwise."""
    RECOGNIZED = "Recognized"
    COMPLETE = "Complete"


class Reason(enum.StrEnum):
    """Reason of a condition, besides the error codes in `cdi.api.errors`."""

    PENDING = "Pending"
    BOUND = "Bound"
    NOT_FOUND = "NotFound"
    CLAIM_LOST = "ClaimLost"
    CREATING_SCRATCH_SPACE = "CreatingScratchSpace"
    ERR_EXCEEDED_QUOTA = "ErrExceededQuota"
    ERR_CLAIM_NOT_VALID = "ErrClaimNotValid"
    COMPLETED = "Completed"
    ERROR = "Error"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    CHECKSUM_ERROR = "ChecksumError"
    CONTAINER_CREATING = "ContainerCreating"
    TRANSFER_RUNNING = "TransferRunning"
    READY = "Ready"
    NO_SOURCE = "NoSource"
    SNAPSHOT_NOT_READY = "SnapshotNotReady"
    MAX_REFERENCE_DEPTH_REACHED = "MaxReferenceDepthReached"
    SELF_REFERENCE = "SelfReference"
    CROSS_NAMESPACE_REFERENCE = "CrossNamespaceReference"
    NO_DIGEST = "NoDigest"
    NO_IMPORT = "NoImport"
    NOT_AUTHORIZED = "NotAuthorized"
    OUTDATED = "Outdated"
    IMPORT_SCHEDULED = "ImportScheduled"
    IMPORT_PROGRESSING = "ImportProgressing"
    UP_TO_DATE = "UpToDate"
    FAILED = "Failed"
    UNPROVEN = "Unproven"
    REVOKED = "Revoked"
    NOT_FOLLOWED = "NotFollowed"
    COMMAND_REFUSED = "CommandRefused"


FAILING = frozenset({Reason.ERROR, Reason.CHECKSUM_ERROR, Reason.IMAGE_PULL_FAILED})
"""Reasons of condition Running with status False that indicate an error rather than an intermediate step."""
PULL_FAILED = "failed to pull image"
"""Text in messages with the reason `Reason.IMAGE_PULL_FAILED`, identical to that of KubeVirt's CDI."""


class EventReason(enum.StrEnum):
    """Reason of an event about a DataVolume or claim."""

    IMPORT_SCHEDULED = "ImportScheduled"
    IMPORT_IN_PROGRESS = "ImportInProgress"
    IMPORT_FAILED = "ImportFailed"
    IMPORT_SUCCEEDED = "ImportSucceeded"
    IMPORT_TARGET_IN_USE = "ImportTargetInUse"
    ERR_IMPORT_FAILED = "ErrImportFailed"
    UPLOAD_SCHEDULED = "UploadScheduled"
    UPLOAD_READY = "UploadReady"
    UPLOAD_FAILED = "UploadFailed"
    UPLOAD_SUCCEEDED = "UploadSucceeded"
    UPLOAD_TARGET_IN_USE = "UploadTargetInUse"
    CLONE_SCHEDULED = "CloneScheduled"
    CLONE_IN_PROGRESS = "CloneInProgress"
    CLONE_FAILED = "CloneFailed"
    CLONE_SUCCEEDED = "CloneSucceeded"
    CLONE_SOURCE_IN_USE = "CloneSourceInUse"
    CLONE_VALIDATION_FAILED = "CloneValidationFailed"
    CLONE_WITHOUT_SOURCE = "CloneWithoutSource"
    SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS = "SnapshotForSmartCloneInProgress"
    SNAPSHOT_FOR_SMART_CLONE_CREATED = "SnapshotForSmartCloneCreated"
    CSI_CLONE_IN_PROGRESS = "CSICloneInProgress"
    PREP_CLAIM_IN_PROGRESS = "PrepClaimInProgress"
    REBIND_IN_PROGRESS = "RebindInProgress"
    EXPANSION_IN_PROGRESS = "ExpansionInProgress"
    NAMESPACE_TRANSFER_IN_PROGRESS = "NamespaceTransferInProgress"
    CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS = "CloneFromSnapshotSourceInProgress"
    EXTERNAL_POPULATION_SUCCEEDED = "ExternalPopulationSucceeded"
    ERR_INCOMPATIBLE_PVC = "ErrIncompatiblePVC"
    ERR_UNABLE_TO_CLONE = "ErrUnableToClone"
    ERR_RESOURCE_EXISTS = "ErrResourceExists"
    ERR_CLAIM_LOST = "ErrClaimLost"
    ERR_CLAIM_NOT_VALID = "ErrClaimNotValid"
    ERR_EXCEEDED_QUOTA = "ErrExceededQuota"
    ERR_STARTING_POD = "ErrStartingPod"
    PROVISIONING_FAILED = "ProvisioningFailed"
    CREATED_PVC_PRIME = "CreatedPVCPrimeSuccessfully"
    ERR_CREATING_PVC_PRIME = "ErrCreatingPVCPrime"
    CLAIM_MISBOUND = "ClaimMisbound"
    NO_VOLUME_SNAPSHOT_CLASS = "NoVolumeSnapshotClass"
    INCOMPATIBLE_PROVISIONERS = "IncompatibleProvisioners"
    INCOMPATIBLE_VOLUME_MODES = "IncompatibleVolumeModes"
    NO_VOLUME_EXPANSION = "NoVolumeExpansion"
    NO_PROVISIONER_MATCH = "NoProvisionerMatch"
    NO_POPULATOR = "NoPopulator"


PROGRESS_DONE = "100.0%"
PROGRESS_UNKNOWN = "N/A"


def progress(fraction: float | None) -> str:
    """Return a DataVolume's progress as ``xx.xx%``; ``100.0%`` when complete, ``N/A`` if unknown."""
    if fraction is None:
        return PROGRESS_UNKNOWN
    # Rounding must not show 100 % before the transfer is complete.
    return PROGRESS_DONE if fraction >= 1 else f"{min(max(fraction, 0) * 100, 99.99):.2f}%"
