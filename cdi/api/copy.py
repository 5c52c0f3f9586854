"""What a host-assisted clone asks of its two workers: one reads a volume and sends it to all who are to
have it, the others fill a volume with it each.

Like `cdi.api.job.Job`: complete, without secrets, the same in a pod and in a test.  Sizes are bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal, Self, TypeVar

from cdi.api.decode import DecodeError, Range, decode
from cdi.api.errors import InvalidManifest
from cdi.api.job import Job, Policy, StreamSourceSpec, TargetSpec

PORT = 8444
"""Where a target waits for its source; `/progress` and `/metrics` have a port of their own."""
TARGETS = "/var/run/cdi/pod/targets"
"""Where a reader's pod shows whom it serves."""
TICKET_PREFIX = "cdi.kubevirt.io/clone.target."
"""Of the annotations of a reader's pod, each of which is a target's `Ticket`."""
TARGETS_MOST = 24
"""That one reader serves at a time."""
CLIENT_NAME = "client.upload-server.cdi.kubevirt.io"
"""The common name that every client certificate of uploads and clones has."""

EACH_TARGET = "{target}"
"""In a path of a reader's files: the id of the target that is to know it by them."""

Content = Literal["kubevirt", "archive"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files; both ends show a certificate and check the other's."""

    certificate: str = "/var/run/cdi/tls/tls.crt"
    key: str = "/var/run/cdi/tls/tls.key"
    ca: str = "/var/run/cdi/tls/ca.crt"
    """Who signed the other end's certificate."""

    def for_target(self, target: str) -> TlsFiles:
        """Those to show a target of this id."""
        return replace(
            self,
            certificate=self.certificate.replace(EACH_TARGET, target),
            key=self.key.replace(EACH_TARGET, target),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A target that a source is to be sent to."""

    id: str
    """That of the target's job, which takes nothing that is meant for another.  Part of a file's name."""
    address: str
    """``host:port`` of the target; an IPv6 address in brackets.  Empty for one that is not to be called yet."""
    server_name: str | None = None
    """The name in the target's certificate, where it is not the address's host."""
    attempt: str = ""
    """Another one is another process that waits there, and was not sent anything yet."""
    bandwidth: Annotated[int, Range(at_least=0)] = 0
    """Bytes per second that this target is sent; 0 is unlimited."""
    claim: str = ""
    """``namespace/name`` of what is cloned into, for people and the controller."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `InvalidManifest` naming every field that is wrong."""
        return _decoded(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySourceJob:
    """Read a volume once and send what is allocated of it to all who are to have it."""

    id: str
    """Of the reader: in a cluster the source claim's uid."""
    path: str
    """A disk file or block device; a directory where `content_type` is ``archive``.  Opened for reading only."""
    targets: str = TARGETS
    """A file of lines ``<TICKET_PREFIX><target's id>="<a `Ticket` in JSON, quoted>"``, as a kubelet shows annotations.
    Other lines are passed over.  It is looked at again and again: targets come, go, and are others."""
    content_type: Content = "kubevirt"
    identity: str = ""
    """Changes when the path shows another volume: the source claim's uid, say, or a snapshot's."""
    expected: Annotated[int, Range(at_least=1)] = 1
    """So many targets are about to come, and are waited for, for some seconds, before anything is read."""
    linger: Annotated[float, Range(at_least=0, at_most=86_400)] = 0.0
    """Seconds without a target that has not all, until the end."""
    tls: TlsFiles = TlsFiles(
        certificate=f"/var/run/cdi/tls/{EACH_TARGET}.crt", key=f"/var/run/cdi/tls/{EACH_TARGET}.key"
    )
    """A certificate of each target's own may come later than its ticket: it is waited for."""
    policy: Policy = field(default_factory=Policy)
    """Of it `bandwidth` (of all targets together), `stall_timeout` and `retries` (content that changed while it was
    read) are used."""
    patience: Annotated[float, Range(above=0, at_most=86_400)] = 600.0
    """Seconds without getting a target any further until that one is given up: it is not there, or goes away."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `InvalidManifest` naming every field that is wrong."""
        return _decoded(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTargetJob:
    """Wait for a source and fill a volume with what it sends."""

    id: str
    """As `Job.id`: a journal of another id is not continued."""
    target: TargetSpec
    content_type: Content = "kubevirt"
    size: int | None = None
    """As `Job.size`: a smaller source is grown to it, a larger one refused.  None: the source's own size (a file
    target), or the device's."""
    journal: str | None = None
    """Where progress is kept for the next attempt."""
    port: Annotated[int, Range(at_least=0, at_most=65535)] = PORT
    client_name: str = CLIENT_NAME
    """The common name that the source's certificate must have; empty for any that the CA signed."""
    tls: TlsFiles = TlsFiles()
    policy: Policy = field(default_factory=Policy)
    """Of it `preallocation`, `stall_timeout` and `retries` (sources that break the protocol) are used."""
    patience: Annotated[float, Range(above=0, at_most=86_400)] = 600.0
    """Seconds without a source until it is given up, at first and after each one that went away."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `InvalidManifest` naming every field that is wrong."""
        return _decoded(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def as_job(self) -> Job:
        """The same volume filled from a stream: what has to do with targets and journals takes this."""
        return Job(
            id=self.id,
            source=StreamSourceSpec(),
            target=self.target,
            content_type=self.content_type,
            size=self.size,
            policy=self.policy,
            journal=self.journal,
        )


AnyJob = Job | CopySourceJob | CopyTargetJob


def _decoded(cls: type[_T], text: str | bytes) -> _T:
    try:
        return decode(cls, text)
    except DecodeError as error:
        raise InvalidManifest(f"not a clone's job: {error}") from error
