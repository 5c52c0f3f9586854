"""Observed facts that are specific to clones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from cdi.api.copy import Ticket
from cdi.api.job import Outcome
from cdi.api.storageprofile import CloneStrategy

if TYPE_CHECKING:
    from cdi.api.populators import VolumeCloneSource
    from cdi.reconcile.storage.classes import StorageClass

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


class CloneLister(Protocol):
    """Read-only lookups of facts for clones, without I/O."""

    def snapshot(self, namespace: str, name: str) -> Snapshot | None: ...

    def clone_source(self, namespace: str, name: str) -> VolumeCloneSource | None: ...

    def unmounted_since(self, namespace: str, claim: str) -> float | None:
        """Return since when no pod can have written to a PVC (seconds since the epoch); None if one may be."""

    def snapshot_class(self, storage_class: str | None, driver: str) -> str | None:
        """Return the VolumeSnapshotClass for volumes of this class (whose profile may name one) and driver."""

    def classes(self, driver: str) -> tuple[StorageClass, ...]:
        """Return the StorageClasses with this provisioner, in any order."""

    def strategy(self, storage_class: str | None) -> CloneStrategy | None:
        """Return the clone strategy of the class's StorageProfile; None if it has none."""

    def source_pod(self, namespace: str, name: str) -> SourcePod | None: ...

    def active_copies(self, source: str) -> int:
        """Return the number of host-assisted clones in progress for the source with this UID."""

    def size_detection_pod(self, namespace: str, name: str) -> SizeDetectionPod | None: ...

    def prep_pod(self, namespace: str, name: str) -> PrepPod | None: ...

    def verify_token(self, token: str, moment: float) -> CloneAuthorization | None:
        """Verify a token.

        Args:
            token: The signed text.
            moment: The time at which it must have been valid, in seconds since the epoch.

        Returns:
            What it permits; None if it is forged or was not valid at `moment`.

        Raises:
            ClusterUnavailable: It cannot be verified now.

        """

    def sign_long_lived_token(self, grant: CloneAuthorization) -> str:
        """Return a long-lived token for `grant`; equal grants give equal tokens.

        Raises:
            ClusterUnavailable: It cannot be signed now.

        """
