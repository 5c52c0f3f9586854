"""Documents that the two ends of a clone exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cdi.api.decode import DecodeError, JsonRecord, Range, decode
from cdi.api.errors import CdiError, PeerProtocolError, by_code

PROTOCOL = 2
"""Version of the requests; both ends run from the same image, except during an upgrade."""
MAX_DOCUMENT = 16 << 10
"""Maximum size of a document in bytes."""
_MAX_TEXT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFacts(JsonRecord):
    """Facts about the volume that a source serves."""

    protocol: int
    content: Literal["kubevirt", "archive"]
    size: Annotated[int, Range(at_least=0)]
    """Size of the disk in bytes; of an archive, approximately."""
    data: Annotated[int, Range(at_least=0)]
    """Approximate allocated bytes."""
    validator: str
    """Changes with the content, if `is_strong`; kept in journals."""
    is_strong: bool
    """Whether an equal validator proves equal content."""
    tag: str
    """Value of If-Match in requests for content; it also changes with the process that serves it, if its validator is
    not strong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFailure:
    """The error because of which one end cannot continue."""

    code: str
    what: str
    where: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: CdiError) -> PeerFailure:
        return cls(
            code=error.code,
            what=error.what[:_MAX_TEXT],
            where=None if error.where is None else error.where[:_MAX_TEXT],
            remedy=error.remedy[:_MAX_TEXT],
        )

    def error(self) -> CdiError:
        return by_code(self.code)(
            self.what[:_MAX_TEXT],
            where=None if self.where is None else self.where[:_MAX_TEXT],
            remedy=None if self.remedy is None else self.remedy[:_MAX_TEXT],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult(JsonRecord):
    """How a target ended, or why a request was refused."""

    digest: str = ""
    """Digest of the volume, without a failure."""
    failure: PeerFailure | None = None

    @classmethod
    def of(cls, error: CdiError) -> PeerResult:
        return cls(failure=PeerFailure.of(error))


def parse_facts(data: bytes) -> PeerFacts:
    """Parse the facts; raise `PeerProtocolError` if they are invalid or of another version."""
    try:
        facts = decode(PeerFacts, data)
    except DecodeError as error:
        raise PeerProtocolError(f"invalid facts about the volume: {error}") from error
    if facts.protocol != PROTOCOL:
        raise PeerProtocolError(f"the other end has version {facts.protocol} of the protocol, not {PROTOCOL}")
    return facts


def parse_result(data: bytes) -> PeerResult:
    """Parse a result; raise `PeerProtocolError` if it is invalid."""
    try:
        return decode(PeerResult, data)
    except DecodeError as error:
        raise PeerProtocolError(f"invalid result: {error}") from error
