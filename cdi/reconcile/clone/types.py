"""Objects and sources of clones, as observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cdi.api.copy import Ticket
from cdi.api.job import Outcome

SourceKind = Literal["PersistentVolumeClaim", "VolumeSnapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A VolumeSnapshot with the relevant fields of its VolumeSnapshotContent."""

    namespace: str
    name: str
    uid: str
    ready: bool = False
    """Whether volumes can be created from it (``status.readyToUse``)."""
    taken: bool = False
    """Whether the storage has taken it: later writes to the source are not included."""
    begun: float = 0.0
    """Creation time by the API server's clock, in seconds since the epoch."""
    size: int | None = None
    """Minimum size in bytes of a volume created from it."""
    driver: str = ""
    """Driver of the storage that holds it; empty while unknown."""
    volume_mode: str = ""
    """Volume mode of its source volume; empty if unknown."""
    storage_class: str = ""
    """Storage class of its source volume; empty if unknown."""
    snapshot_class: str = ""
    source: str = ""
    """Name of its source PVC; empty if it was not taken from a PVC."""
    error: str = ""
    """The last error of the storage."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneSource:
    """An existing source."""

    kind: SourceKind
    namespace: str
    name: str
    uid: str
    volume_mode: str
    """Empty if unknown."""
    storage_class: str | None
    driver: str
    size: int | None
    """Minimum size in bytes of a volume that the storage creates from it."""
    asked: int | None
    """Originally requested size in bytes, at most `size`."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def place(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepPod:
    """The prep pod, which mounts a PVC once so that its volume is provisioned and its filesystem expanded."""

    uid: str
    phase: str
    message: str = ""
    """The reason why it does not run."""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePod:
    """A source pod, which reads a source and sends it to all of its clones."""

    uid: str
    source: str
    """UID of what it reads: a PVC, or the snapshot from which a PVC was restored."""
    tickets: Mapping[str, Ticket] = field(default_factory=dict)
    """Its targets, by the UIDs of the target PVCs."""
    running: bool = False
    ended: float | None = None
    """Seconds since the epoch."""
    reason: str = ""
    """Its state as a reason of the Running condition."""
    message: str = ""
    """The reason why it does not run, or how it ended."""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeDetectionPod:
    """The size-detection pod, which determines the size of the disk in a source."""

    uid: str
    target: str
    """UID of the DataVolume that it was created for."""
    source: str
    """UID of the PVC that it inspects."""
    outcome: Outcome | None = None
    """Its outcome with the `disk_size`; None until it has ended."""
    ended: float = 0.0
    """Seconds since the epoch."""
    message: str = ""
    """The reason why it does not run."""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneAuthorization:
    """The content of a verified token: which source may be cloned to which target."""

    kind: SourceKind
    namespace: str
    name: str
    target_namespace: str
    target_name: str
    target_uid: str = ""
    """UID of the only DataVolume that it is valid for; empty in a short-lived token, which is valid for any UID."""
