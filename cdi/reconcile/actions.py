"""What a reconciler wants done.  Every action may be lost, or done twice, and the next reconcile heals it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from cdi.api.decode import DecodeError, decode
from cdi.api.errors import InvalidManifest
from cdi.api.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneJob:
    """A volume's content is copied to another volume: the worker's input, as `Job` is for an image from outside."""

    id: str
    """The target claim's uid."""
    source: str
    """A disk image, or a directory where `content` is ``archive``."""
    target: str
    """Of the same kind; a disk is written beside its name and moved there when it is complete."""
    content: Literal["kubevirt", "archive"] = "kubevirt"
    size: int | None = None
    """Of the new disk, bytes: not less than the source's; None for the same."""
    preallocation: bool = False

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `InvalidManifest` naming every field that is wrong."""
        try:
            return decode(cls, text)
        except DecodeError as error:
            raise InvalidManifest(f"not a clone job: {error}") from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


Work = Job | CloneJob


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class InputRef:
    """A Secret or ConfigMap."""

    kind: Literal["Secret", "ConfigMap"]
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Every key of these objects is a file in `directory`, as a projected volume shows them.

    Where several objects share a directory, a file is called after its object as well.
    """

    directory: str
    inputs: tuple[InputRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateClaim:
    """Make a PersistentVolumeClaim; one of that name that exists is left alone."""

    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchObject:
    """Set labels, annotations (None removes one) and a controlling owner on an object, if it still has this uid."""

    plural: str
    namespace: str
    name: str
    uid: str
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Begin an attempt, unless that attempt or a later one was begun already."""

    claim: str
    """The claim's uid."""
    attempt: int
    """Counts from 1."""
    work: Work
    mounts: tuple[Mount, ...] = ()
    fingerprint: str = ""
    """Changes whenever anything does that the work depends on."""
    upload: str = ""
    """The upload request that it serves."""


Action = CreateClaim | PatchObject | StartWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFact:
    """Something that happened, told once."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `reconcile` found: carry the actions out in order, tell the events, then write the status."""

    actions: tuple[Action, ...] = ()
    events: tuple[EventFact, ...] = ()
    status: Mapping[str, Any] | None = None
    """The whole status as it shall stand; None where it stands so already."""
    requeue_after: float | None = None
    """Look again after so many seconds, even if nothing changes."""
    wants_worker: bool = False
    """Everything is there for a worker but the permission to run one (`World.admitted`)."""
