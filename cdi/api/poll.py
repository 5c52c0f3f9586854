"""Contract between controller and poll worker: one `PollJob` in, one `PollResult` out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self

from cdi.api.decode import DecodeError, Range, decode
from cdi.api.errors import InvalidManifest
from cdi.api.job import Failure, Policy, SourceSpec

_MAX_ID = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PollJob:
    """A source whose current digest is to be found without downloading its content."""

    id: str
    """UID of the DataImportCron."""
    source: SourceSpec
    policy: Policy = field(default_factory=Policy)
    known: str | None = None
    """Digest that the last poll found: a registry that still states it need not send the manifest."""
    timeout: Annotated[float, Range(above=0, at_most=3600)] = 120.0
    """Seconds until the poll ends with a failure."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `InvalidManifest` that names every invalid field."""
        try:
            return decode(cls, text)
        except DecodeError as error:
            raise InvalidManifest(f"not a poll job: {error}") from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PollResult:
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

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `ValueError` if it is invalid."""
        return decode(cls, text)

    def to_json(self, limit: int = 4096) -> str:
        """Return ASCII JSON of at most `limit` bytes: a termination message.

        The least important fields are dropped first; the end of a failure's message is dropped last. A `limit` below
        1024 is not supported.
        """
        body = asdict(self)

        def dump() -> str:
            return json.dumps(body, separators=(",", ":"))

        body["id"] = self.id[:_MAX_ID]
        lesser: tuple[dict[str, Any], ...] = (
            {"verified_by": [text[:100] for text in self.verified_by[:2]]},
            {"verified_by": []},
            {"architectures": []},
            {"resolved": None},
            {"identity": None},
        )
        for less in lesser:
            if len(dump()) > limit:
                body |= less
        while self.failure is not None and len(dump()) > limit and body["failure"]["message"]:
            over = len(dump()) - limit
            # A character takes up to 12 bytes of the text.
            body["failure"]["message"] = body["failure"]["message"][: -max(over // 12, 1)]
        return dump()
