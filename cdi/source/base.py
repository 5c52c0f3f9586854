"""The interface of sources: facts about the content, then its bytes. Sources make no policy decisions.

All calls block and are made from threads; a `Reader` is used by one thread, except for `abort`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol, Self

from cdi.api.digest import Digest
from cdi.api.errors import SourceRefused


class Ending(enum.Enum):
    """The ways to distinguish the end of the content from a truncated transfer."""

    FRAMED = enum.auto()
    """The framing shows the end: an announced length, chunks, the boundary of a form."""
    TLS_CLOSE = enum.auto()
    """The TLS close_notify alert shows the end, but not every server sends it."""
    CLOSE = enum.auto()
    """Nothing shows the end: the connection is closed, as it is when truncated (RFC 9112 section 8)."""
    PIPE = enum.auto()
    """The end of a pipe. Only the process that started its writer knows whether that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """The facts that a source states about its content before it is read."""

    location: str
    """The location for messages, without credentials and without a query string, which may contain a signature."""
    length: int | None
    """The length in bytes; None if the source does not state it."""
    ranges: bool
    """Whether any range can be read at any time and repeatedly."""
    resumes: bool = False
    """Whether a content that is read once can be opened at the offset where an earlier attempt stopped."""
    min_length: int = 0
    """A lower bound of the length in bytes, for a source that does not know `length`."""
    max_length: int | None = None
    """An upper bound of the length in bytes; None if the source does not know any."""
    estimate: int | None = None
    """The approximate number of bytes, for the progress of content without a stated length."""
    ending: Ending = Ending.FRAMED
    validator: str | None = None
    """A value that changes with the content (an ETag, Last-Modified, a generation, mtime and inode); kept in
    journals. None if the source has no such value, so that two reads may return different contents.
    """
    identity: str | None = None
    """A value that is equal only for equal content: a strong ETag (with the version of the object in S3) or a
    generation. None if the source has no such value; a weak ETag or a date does not suffice.
    """
    pinned: str | None = None
    """The URL of exactly this content, without credentials, if the source keeps versions (S3, GCS)."""
    digests: tuple[Digest, ...] = ()
    """The digests of the whole content, as stated by the source itself (registry, S3, GCS)."""
    content_type: str | None = None
    name: str | None = None
    """The last part of the path; used to find the file in a SHA256SUMS, never to guess its format."""


class Reader(Protocol):
    """A reader of a byte range, from its start to its end."""

    def readinto(self, view: memoryview) -> int:
        """Read at least one byte into `view`; return 0 at the end of the range.

        Raises `SourceTruncated` if the range ends early, `SourceStalled`, `SourceUnreachable` or `SourceTooLong`.
        """
        ...

    def abort(self) -> None:
        """Make the current or next read raise `Interrupted` soon. Thread-safe."""
        ...

    def close(self) -> None:
        """Release the reader; a connection that was read to its end may be reused."""
        ...


class Source(Protocol):
    """The location of an image, from which it can be read."""

    def probe(self) -> SourceFacts:
        """Return the facts, which are requested once and cached; raise a `SourceError`."""
        ...

    def open(self, offset: int = 0, length: int | None = None) -> Reader:
        """Return a reader of `length` bytes from `offset`, or of all remaining bytes for None.

        A `length` requires `ranges`; an `offset` requires `ranges` or `resumes`. The reader returns the content that
        `probe` saw, or raises `SourceChanged`. A source without a validator can ensure that only within one response,
        so it reads the whole content in one response.
        """
        ...

    def sibling(self, name: str) -> Source | None:
        """Return the file of that name beside this one; None if the source has no such notion."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def read_all(source: Source, limit: int) -> bytes:
    """Return the whole content of at most `limit` bytes.

    Raises `SourceRefused` if it is longer, and whatever the source raises.
    """
    facts = source.probe()
    if facts.length is not None and facts.length > limit:
        raise _too_large(facts.length, limit, facts.location)
    # Read one byte more than allowed; otherwise a longer file of unknown length would look complete.
    data = memoryview(bytearray((limit if facts.length is None else facts.length) + 1))
    done = 0
    reader = source.open()
    try:
        while done < len(data) and (count := reader.readinto(data[done:])):
            done += count
    finally:
        reader.close()
    if done > limit:
        raise _too_large(done, limit, facts.location)
    return bytes(data[:done])


def _too_large(length: int, limit: int, where: str) -> SourceRefused:
    return SourceRefused(
        f"the file has {length} bytes or more; the limit is {limit}",
        where=where,
        remedy="check that it is the right file",
    )
