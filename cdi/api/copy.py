"""Job of a host-assisted clone's source, the worker that reads a volume, and the tickets of its targets.

Each target runs an ordinary `cdi.api.job.Job` with a `PeerSourceSpec`. Sizes are bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal, Self, TypeVar

from cdi.api.decode import DecodeError, Range, decode
from cdi.api.errors import InvalidManifest
from cdi.api.job import Job, Policy
from cdi.api.peer import EACH_TARGET, TlsFiles

TARGETS = "/var/run/cdi/pod/targets"
"""File that lists the targets of a source pod (downward API)."""
TICKET_PREFIX = "cdi.kubevirt.io/clone.target."
"""Prefix of the source pod's annotations that contain one target's `Ticket` each."""
MAX_TARGETS = 24
"""Maximum number of targets that one reader serves at a time."""

OWN_CERTIFICATES = TlsFiles(
    certificate=f"/var/run/cdi/tls/{EACH_TARGET}.crt", key=f"/var/run/cdi/tls/{EACH_TARGET}.key"
)
"""A source's certificates, one for each target."""

Content = Literal["kubevirt", "archive"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Target that a source is sent to."""

    id: str
    """Id of the target's job, which accepts no data for another id. It is used in a file name."""
    address: str
    """``host:port`` of the target, with an IPv6 address in brackets; empty while it must not be contacted."""
    server_name: str | None = None
    """Name in the target's certificate, if it is not the host of `address`."""
    attempt: str = ""
    """Identifies the target's process; a different value means a new process that has received no data."""
    bandwidth: Annotated[int, Range(at_least=0)] = 0
    """Bytes per second sent to this target; 0 is unlimited."""
    claim: str = ""
    """``namespace/name`` of the target, for messages and the controller."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `InvalidManifest` that names every invalid field."""
        return _decoded(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySourceJob:
    """Read a volume once and send its allocated data to all targets."""

    id: str
    """Id of the reader; in a cluster, the uid of the source claim."""
    path: str
    """A disk file or block device, or a directory if `content_type` is ``archive``. Opened read-only."""
    targets: str = TARGETS
    """A file in the format of annotations in the downward API, with a line ``<TICKET_PREFIX><target's id>="<a `Ticket`
    in JSON, quoted>"`` for each target. Other lines are ignored. The file is read repeatedly, because targets are
    added, removed and replaced."""
    content_type: Content = "kubevirt"
    identity: str = ""
    """Identity of the volume at the path, such as the uid of the source claim or snapshot."""
    expected: Annotated[int, Range(at_least=1)] = 1
    """Number of targets to wait for, up to some seconds, before reading begins."""
    linger: Annotated[float, Range(at_least=0, at_most=86_400)] = 0.0
    """Seconds without unfinished targets after which the reader ends."""
    tls: TlsFiles = OWN_CERTIFICATES
    """A target's certificate may appear later than its ticket; the reader waits for it."""
    policy: Policy = field(default_factory=Policy)
    """Only `bandwidth` (total of all targets), `stall_timeout` and `retries` (for content that changes while it is
    read) are used."""
    patience: Annotated[float, Range(above=0, at_most=86_400)] = 600.0
    """Seconds without progress after which an unreachable or disconnected target is given up."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `InvalidManifest` that names every invalid field."""
        return _decoded(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


AnyJob = Job | CopySourceJob


def _decoded(cls: type[_T], text: str | bytes) -> _T:
    try:
        return decode(cls, text)
    except DecodeError as error:
        raise InvalidManifest(f"not a clone's job: {error}") from error
