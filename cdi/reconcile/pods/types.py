"""Workers and their pods, as observed."""

from __future__ import annotations

from dataclasses import dataclass

from cdi.api.job import Failure, Outcome, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PodBlocker:
    """The reason why a pod does not run although none of its containers has failed yet."""

    reason: str
    """A reason of the Running condition: Unschedulable, ImagePullFailed, ContainerCreating, NodeLost …"""
    message: str
    """Cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod of a worker attempt."""

    name: str
    uid: str
    claim: str
    """UID of its controlling owner, the PVC that it fills."""
    node: str = ""
    """The node's name; empty until it is scheduled."""
    started: bool = False
    """Whether its container is running or has run."""
    scheduled: bool | None = None
    """Status of the PodScheduled condition; None if the condition is absent."""
    hold: PodBlocker | None = None
    deleting: bool = False
    limits: str = ""
    """The annotation with its limits (`cdi.api.job.Limits`)."""
    scratch: bool = False
    """Whether it has scratch space."""
    serves: bool = False
    """Whether it accepts data: an upload server, or the target pod of a clone."""
    ready: bool = False
    """Whether its container reports ready."""
    restarts: bool = False
    """Whether the kubelet restarts its container after a failure, which is the next attempt."""
    restarted: bool = False
    """Whether its container has been restarted."""
    spec: str = ""
    """Digest of the template that it was created from."""
    address: str = ""
    """Its pod IP; empty until it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The newest attempt to fill a PVC."""

    attempt: int
    running: bool
    """Whether it has not ended; its container may not have started yet (`Pod.started`)."""
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    progress: Progress | None = None
    outcome: Outcome | None = None
    """Set once it is not running; a worker that ended without an outcome has a failure ``WorkerLost``."""
    fingerprint: str = ""
    """Digest of the inputs that it was started with (`StartWorker.fingerprint`)."""
    upload: str = ""
    pod: Pod | None = None
    """None where workers are processes."""
    journal: str = ""
    """State for the next attempt, if its volume cannot keep it."""
    refused: Failure | None = None
    """Why it rejected the last upload; it is waiting for another one."""
    previous: Worker | None = None
    """The attempt before this one, if it ran in the same pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLayout:
    """Paths that a worker uses for its volume, scratch space and inputs."""

    disk: str
    directory: str
    """The volume itself, for archives."""
    journal: str | None
    scratch: str | None
    inputs: str
    """Parent directory, with one directory for each mount."""
