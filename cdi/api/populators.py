"""Volume populators, which fill the claims that name them in ``dataSourceRef``, with or without a DataVolume."""

from __future__ import annotations

from cdi.api.datavolume import Checkpoint
from cdi.api.meta import KubeObject, TypedLocalObjectReference
from cdi.api.model import Model
from cdi.api.sources import ImportSource


class VolumeImportSourceSpec(Model):
    """Desired state: the content of the PVC."""

    source: ImportSource | None = None
    """Source of the content."""
    preallocation: bool | None = None
    """Give every block of the disk its place in advance."""
    content_type: str | None = None
    """kubevirt (a disk image, the default) or archive (a tar archive)."""
    target_claim: str | None = None
    """The one claim that a warm import fills."""
    checkpoints: list[Checkpoint] | None = None
    """The stages of a warm import, from imageio or vddk."""
    final_checkpoint: bool | None = None
    """The last of the checkpoints is the end of the import."""


class PopulatorStatus(Model):
    """Nothing is recorded here."""


class VolumeImportSource(KubeObject):
    """Fills claims that name it in dataSourceRef with an imported image."""

    spec: VolumeImportSourceSpec
    """Desired state: the content of the PVC."""
    status: PopulatorStatus | None = None
    """Nothing is recorded here."""


class VolumeUploadSourceSpec(Model):
    """Desired state: the content of the PVC."""

    content_type: str | None = None
    """kubevirt (a disk image, the default) or archive (a tar archive)."""
    preallocation: bool | None = None
    """Give every block of the disk its place in advance."""


class VolumeUploadSource(KubeObject):
    """Fills claims that name it in dataSourceRef with an uploaded image."""

    spec: VolumeUploadSourceSpec
    """Desired state: the content of the PVC."""
    status: PopulatorStatus | None = None
    """Nothing is recorded here."""


class VolumeCloneSourceSpec(Model):
    """Desired state: the content of the PVC."""

    source: TypedLocalObjectReference
    """A PersistentVolumeClaim or VolumeSnapshot of the same namespace."""
    preallocation: bool | None = None
    """Give every block of the disk its place in advance."""
    priority_class_name: str | None = None
    """The priority class of the worker pods."""


class VolumeCloneSource(KubeObject):
    """Fills claims that name it in dataSourceRef with a clone."""

    spec: VolumeCloneSourceSpec
    """Desired state: the content of the PVC."""
