"""Contract between controller and poll worker: one `PollJob` in, one `PollResult` out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from cdi.api.decode import JsonJob, JsonRecord, Range
from cdi.api.job import Failure, Policy, SourceSpec, shortened_json

_MAX_ID = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PollJob(JsonJob):
    """A source whose current digest is to be found without downloading its content."""

    title: ClassVar = "poll job"

    id: str
    """UID of the DataImportCron."""
    source: SourceSpec
    policy: Policy = field(default_factory=Policy)
    known: str | None = None
    """Digest that the last poll found: a registry that still states it need not send the manifest."""
    timeout: Annotated[float, Range(above=0, at_most=3600)] = 120.0
    """Seconds until the poll ends with a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollResult(JsonRecord):
    """Result of a poll; `failure` is None on success."""

    id: str
    digest: str | None = None
    """``sha256:hex`` that identifies the content: of the top manifest for a registry."""
    resolved: str | None = None
    """Reference that pins this content, if the source has one; without credentials."""
    identity: str | None = None
    """What the digest was taken from: manifest, checksum file, etag or generation."""
    checksum: str | None = None
    """Digest ``algorithm:hex`` of the content itself, from a checksum file; the import can verify it."""
    architectures: tuple[str, ...] = ()
    """Architectures of the top manifest."""
    size: int | None = None
    """Bytes of the content, if known."""
    verified_by: tuple[str, ...] = ()
    """Completed checks, such as the signature of the checksum file."""
    failure: Failure | None = None

    def to_json(self, limit: int = 4096) -> str:
        """Return ASCII JSON of at most `limit` bytes: a termination message.

        The least important fields are dropped first; the end of a failure's message is dropped last. A `limit` below
        1024 is not supported.
        """
        lesser: tuple[dict[str, Any], ...] = (
            {"verified_by": [text[:100] for text in self.verified_by[:2]]},
            {"verified_by": []},
            {"architectures": []},
            {"resolved": None},
            {"identity": None},
        )
        return shortened_json(asdict(self) | {"id": self.id[:_MAX_ID]}, lesser, limit)
