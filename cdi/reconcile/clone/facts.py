"""What is observed for clones beside what every volume needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from cdi.api.copy import Ticket
from cdi.api.job import Outcome
from cdi.api.storageprofile import CloneStrategy

if TYPE_CHECKING:
    from cdi.api.populators import VolumeCloneSource
    from cdi.reconcile.storageclass import StorageClass

SourceKind = Literal["PersistentVolumeClaim", "VolumeSnapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A VolumeSnapshot and what its content says."""

    namespace: str
    name: str
    uid: str
    ready: bool = False
    """Volumes can be made of it (``status.readyToUse``)."""
    taken: bool = False
    """The storage has taken it: what is written to its source from now on is not in it."""
    begun: float = 0.0
    """When it was asked for, by the API server's clock; seconds since the epoch."""
    size: int | None = None
    """The least size of a volume made of it, bytes."""
    driver: str = ""
    """Of the storage that holds it; empty while that is not known."""
    volume_mode: str = ""
    """Of the volume that it was taken of; empty where nobody says."""
    storage_class: str = ""
    """Of the volume that it was taken of; empty where nobody says."""
    snapshot_class: str = ""
    source: str = ""
    """The name of the claim that it was taken of; empty for one that was not taken of a claim."""
    error: str = ""
    """What the storage said last, if that was an error."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The pod that mounts a claim once, so that its volume is made and its file system grows."""

    uid: str
    phase: str
    message: str = ""
    """Why it does not run."""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A pod that reads a source and sends it to all who are cloned from it."""

    uid: str
    source: str
    """The uid of what it reads: a claim's, or a snapshot's that a claim was made of."""
    tickets: Mapping[str, Ticket] = field(default_factory=dict)
    """Whom it sends to, by the uids of the claims that are cloned into."""
    running: bool = False
    ended: float | None = None
    """Seconds since the epoch."""
    reason: str = ""
    """What it is at, as a reason of the Running condition."""
    message: str = ""
    """Why it does not run, or how it ended."""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The pod that looks how large the disk in a source is."""

    uid: str
    target: str
    """The uid of the DataVolume that it is for."""
    source: str
    """The uid of the claim that it looks into."""
    outcome: Outcome | None = None
    """Set once it has ended; `disk_size` counts."""
    ended: float = 0.0
    """Seconds since the epoch."""
    message: str = ""
    """Why it does not run."""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Who may clone what into what: what a token says, once it is verified."""

    kind: SourceKind
    namespace: str
    name: str
    target_namespace: str
    target_name: str
    target_uid: str = ""
    """The one DataVolume of that name that it is for; empty for any, in a token that is good for minutes."""


class CloneFacts(Protocol):
    """Looking one up does no I/O."""

    def snapshot(self, namespace: str, name: str) -> Snapshot | None: ...

    def clone_source(self, namespace: str, name: str) -> VolumeCloneSource | None: ...

    def undisturbed(self, namespace: str, claim: str) -> float | None:
        """Since when nobody can have written into it, seconds since the epoch; None where somebody may be."""

    def snapshot_class(self, storage_class: str | None, driver: str) -> str | None:
        """The VolumeSnapshotClass for volumes of this class (whose profile may name one) and driver."""

    def classes(self, driver: str) -> tuple[StorageClass, ...]:
        """The StorageClasses whose volumes are made by this driver, in no order."""

    def strategy(self, storage_class: str | None) -> CloneStrategy | None:
        """What the class's StorageProfile says; None where it says nothing."""

    def reader(self, namespace: str, name: str) -> Reader | None: ...

    def copies(self, source: str) -> int:
        """How many clones of the source with this uid are being copied."""

    def measurement(self, namespace: str, name: str) -> Measurement | None: ...

    def preparation(self, namespace: str, name: str) -> Preparation | None: ...

    def grant(self, token: str, moment: float) -> Grant | None:
        """What a token allows; None for one that is forged, or was no longer or not yet good at `moment` (seconds since
        the epoch).

        Raises `ClusterUnavailable` where it cannot be verified now.
        """

    def extend(self, grant: Grant) -> str:
        """A token for the same that does not expire; for the same grant the same.  Raises `ClusterUnavailable`."""
