"""DataVolume: a volume and its content."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from cdi.api.claims import ClaimSpec, StorageSpec
from cdi.api.meta import Condition, KubeObject
from cdi.api.model import Int32, Model
from cdi.api.sources import DataVolumeSource, SourceKind


class ContentType(enum.StrEnum):
    """Type of the content."""

    KUBEVIRT = "kubevirt"
    """A disk image in any supported format; the default."""
    ARCHIVE = "archive"
    """A tar archive to be extracted."""


ContentTypeField = Annotated[str, Field(json_schema_extra={"enum": [str(kind) for kind in ContentType]})]


class SourceRef(Model):
    """A source that is looked up when the import begins."""

    kind: str
    """DataSource."""
    namespace: str | None = None
    """The DataSource's namespace; that of the DataVolume where none is given."""
    name: str
    """The DataSource's name."""


class Checkpoint(Model):
    """A stage of a warm import."""

    previous: str
    """The snapshot that the stage before ended with; empty for the first."""
    current: str
    """The snapshot that this stage copies."""


class DataVolumeSpec(Model):
    """Desired state: the volume's content and its PVC."""

    source: DataVolumeSource | None = None
    """Source of the content; either this or sourceRef."""
    source_ref: SourceRef | None = None
    """A DataSource that says where the content comes from."""
    pvc: ClaimSpec | None = None
    """The claim, taken as it is; either this or storage."""
    storage: StorageSpec | None = None
    """The claim as the user needs it, completed from the storage profile."""
    priority_class_name: str | None = None
    """The priority class of the worker pods."""
    service_account_name: str | None = None
    """The service account of the worker pods."""
    content_type: ContentTypeField | None = None
    """kubevirt (a disk image, the default) or archive (a tar archive)."""
    checkpoints: list[Checkpoint] | None = None
    """The stages of a warm import, from imageio or vddk."""
    final_checkpoint: bool | None = None
    """The last of the checkpoints is the end of the import."""
    preallocation: bool | None = None
    """Give every block of the disk its place in advance."""

    @property
    def claim(self) -> StorageSpec | None:
        """Claim in whichever form is set."""
        return self.pvc if self.pvc is not None else self.storage

    @property
    def is_clone(self) -> bool:
        """True if the content comes from another volume or snapshot, which also defines its size."""
        if self.source_ref is not None:
            return True
        kinds = {kind for kind, _ in self.source.given()} if self.source else set()
        return bool(kinds & {SourceKind.PVC, SourceKind.SNAPSHOT})


class StatusDetail(Model):
    """Reason and message of a wait or a failure, in more detail than the conditions."""

    reason: str | None = None
    """Error code, or the reason of the wait."""
    message: str | None = None
    """Cause and remedy; after success, what the content was verified by."""


class DataVolumeStatus(Model):
    """How far it is."""

    claim_name: str | None = None
    """The claim that holds the disk."""
    phase: str | None = None
    """Phase of the import; Succeeded and Failed are final."""
    progress: str | None = None
    """Per cent of the transfer, such as 42.17%, or N/A."""
    restart_count: Int32 | None = None
    """RestartCount is the number of times the pod populating the DataVolume has restarted or been replaced."""
    conditions: list[Condition] | None = None
    """Ready, Bound and Running, each with the reason."""
    detail: StatusDetail | None = None
    """Cause and remedy of what it waits for or failed with; none in KubeVirt's CDI."""


class DataVolume(KubeObject):
    """A volume together with what it shall hold: an image to import, upload or clone, or nothing yet."""

    spec: DataVolumeSpec
    """Desired state: the volume's content and its PVC."""
    status: DataVolumeStatus | None = None
    """DataVolumeStatus contains the current status of the DataVolume; written by the controller."""
