"""What every source gives: facts first, then bytes.  Sources decide nothing.

All calls block and are made from threads; a `Reader` is used by one thread, except for `abort`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol, Self

from cdi.api.digest import Digest


class Ending(enum.Enum):
    """How the end of a content is told from a transfer that was cut off."""

    FRAMED = enum.auto()
    """By its framing: an announced length, chunks, the boundary of a form."""
    TLS_CLOSE = enum.auto()
    """By the closing alert of TLS, which not every server sends."""
    CLOSE = enum.auto()
    """Not at all: the connection closes, and so does one that is cut off (RFC 9112 section 8)."""
    PIPE = enum.auto()
    """By the end of a pipe.  Whether its writer failed is known to whoever started it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What a source says about its content before it is read."""

    location: str
    """For messages: no credentials, no query string that may hold a signature."""
    length: int | None
    """Bytes, None where the source does not say."""
    ranges: bool
    """Any part can be read at any time, as often as wanted."""
    resumes: bool = False
    """Comes once, but may be opened where an earlier attempt was stopped."""
    announced: int | None = None
    """Bytes that will be sent, where a few of the last ones may not belong to the content (`length` is None then)."""
    ending: Ending = Ending.FRAMED
    validator: str | None = None
    """Changes whenever the content does (an ETag, Last-Modified, a generation, mtime and inode); kept in journals.
    None where the source has nothing of that kind: two reads of it may be of different contents."""
    digests: tuple[Digest, ...] = ()
    """Of the whole content, as promised by the source itself (registry, S3, GCS)."""
    content_type: str | None = None
    name: str | None = None
    """The last part of the path; a hint for finding it in a SHA256SUMS, never for its format."""


class Reader(Protocol):
    """A run of bytes, from front to back."""

    def readinto(self, view: memoryview) -> int:
        """Fill some of `view`, at least a byte; 0 at the end of the run.

        Raises `SourceTruncated` when the run ends early, `SourceStalled`, `SourceUnreachable`, `SourceTooLong`.
        """
        ...

    def abort(self) -> None:
        """From any thread: a read under way, or the next, raises `Interrupted` soon."""
        ...

    def close(self) -> None:
        """Done with it; a connection that was read to its end may be used again."""
        ...


class Source(Protocol):
    """An image's whereabouts."""

    def probe(self) -> SourceFacts:
        """Ask once, and remember; raises a `SourceError`."""
        ...

    def open(self, offset: int = 0, length: int | None = None) -> Reader:
        """Read `length` bytes from `offset` (to the end where None).

        A length needs `ranges`, an offset those or `resumes`.  The content is that which `probe` saw, or
        `SourceChanged` is raised.  Where the source has no validator that can only be held to within one run: the whole
        content is then read in one answer.
        """
        ...

    def sibling(self, name: str) -> Source | None:
        """The file of that name beside this one, where the source has such a notion."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
