"""What a reconciler sees: facts that were observed before it was called, and the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.job import Outcome, Progress, Proxy
from cdi.reconcile.actions import InputRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A PersistentVolumeClaim."""

    namespace: str
    name: str
    uid: str
    phase: str
    """Pending, Bound or Lost."""
    why_pending: str = ""
    """What keeps it from being bound, a sentence; empty while nothing is wrong."""
    capacity: int | None = None
    """Bytes, once it is bound."""
    controller_kind: str = ""
    controller_name: str = ""
    controller_uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    volume_mode: str = "Filesystem"
    storage_class: str | None = None
    deleting: bool = False
    path: str | None = None
    """The volume's directory where this machine has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The newest attempt to fill a claim."""

    attempt: int
    running: bool
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    progress: Progress | None = None
    outcome: Outcome | None = None
    """Set once it is not running; a worker that ended without one has a failure ``WorkerLost``."""
    fingerprint: str = ""
    """Of what it was started with (`StartWorker.fingerprint`)."""
    upload: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A Secret or ConfigMap that exists."""

    version: str
    """Changes with its content."""
    keys: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What CDIConfig says, resolved."""

    preallocation: bool = False
    proxy: Proxy = field(default_factory=Proxy)
    trusted_ca: InputRef | None = None
    """Certificates of the proxy."""
    insecure_registries: frozenset[str] = frozenset()
    """``host`` or ``host:port``."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a StorageProfile says where a DataVolume's storage leaves it open."""

    access_modes: tuple[str, ...] = ("ReadWriteOnce",)
    volume_mode: str = "Filesystem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How passing failures are met."""

    budget: int = 10
    """Attempts in a row without progress."""
    base: float = 1.0
    """Seconds before the second attempt; each further one waits twice as long."""
    longest: float = 120.0
    """The longest pause, seconds."""
    patience: float = 60.0
    """Seconds between looks at what only a person can change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the place that this runs in can do."""

    local_files: bool = False
    """Manifests may name files of this machine (a key ring)."""
    snapshots: bool = False
    image_streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a worker finds its volume and its other things."""

    disk: str
    directory: str
    """The volume itself, for archives."""
    journal: str | None
    scratch: str | None
    inputs: str
    """Below it, one directory for each mount."""


class Objects(Protocol):
    """The other objects, as they were observed; looking one up does no I/O."""

    def claim(self, namespace: str, name: str) -> Claim | None: ...

    def data_volume(self, namespace: str, name: str) -> DataVolume | None: ...

    def data_source(self, namespace: str, name: str) -> DataSource | None: ...

    def input(self, ref: InputRef) -> Input | None: ...

    def profile(self, storage_class: str | None) -> Profile: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that decides what becomes of one DataVolume."""

    now: float
    """Seconds since the epoch."""
    datavolume: DataVolume
    objects: Objects
    worker: Worker | None
    """Of this DataVolume's claim."""
    layout: Layout | None
    """None until the claim exists."""
    config: Config = Config()
    retries: Retries = Retries()
    platform: Platform = Platform()
    admitted: bool = True
    """There is room for one more worker."""
    turn: str = ""
    """Why not, where `admitted` is False."""


Operation = Literal["Import", "Upload", "Clone"]
