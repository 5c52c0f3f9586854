"""Streaming reader for tar archives: ustar, pax, GNU long names, GNU sparse files (old, 0.0, 0.1 and 1.0).

It does not access a file system and does not validate names; `cdi.target.directory` decides what a member may do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cdi.api.errors import ContentTruncated, ImageUnsafe
from cdi.codec.base import MAX_CHUNK, Buffer
from cdi.codec.cursor import BufferCursor
from cdi.image.tar_header import (
    BLOCK,
    MAX_SPARSE,
    Header,
    check_sparse,
    checked_size,
    corrupt,
    decimal,
    later_volume,
    parse_header,
    parse_number,
    parse_pax,
    parse_text,
    parse_time,
    sparse_entries,
)

MAX_EXTENDED = 1 << 20
"""Maximum size in bytes of an extended header or long name."""
_EXTENDED_IN_A_ROW = 16

Kind = Literal["file", "directory", "symlink", "hardlink", "character", "block", "fifo", "other"]

_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "character",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}

_ZEROS = bytes(MAX_CHUNK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An entry of the archive; its content can be read once, and only before the next member is requested."""

    name: str
    """Name as in the archive; bytes that are not UTF-8 are surrogates (`os.fsencode`)."""
    kind: Kind
    size: int
    """Size of the content in bytes, including the holes of a sparse file; 0 if it is not a file."""
    stored: int
    """Bytes of content stored in the archive."""
    offset: int
    """Offset of the stored content in the archive, in bytes."""
    mode: int
    """Permission bits, with setuid, setgid and sticky."""
    mtime: float
    link: str
    """Target of a link."""
    extents: tuple[tuple[int, int], ...]
    """The stored parts of the content, as ``(offset, length)``; the rest is zero."""
    _content: Iterator[memoryview] = field(repr=False)

    def chunks(self) -> Iterator[tuple[int, Buffer]]:
        """Yield the stored content in pieces of at most `MAX_CHUNK` bytes, each with its offset in the content."""
        parts = iter(self.extents)
        at = left = 0
        for view in self._content:
            begin = 0
            while begin < len(view):
                if not left:
                    at, left = next(parts)
                piece = view[begin : begin + left]
                yield at, piece
                at, left, begin = at + len(piece), left - len(piece), begin + len(piece)

    def read(self) -> Iterator[Buffer]:
        """Yield the content, zeros included, in pieces of at most `MAX_CHUNK` bytes."""
        at = 0
        for offset, piece in self.chunks():
            yield from _zeros(offset - at)
            yield piece
            at = offset + len(piece)
        yield from _zeros(self.size - at)


def _zeros(count: int) -> Iterator[Buffer]:
    view = memoryview(_ZEROS)
    for at in range(0, count, MAX_CHUNK):
        yield view[: min(MAX_CHUNK, count - at)]


def members(pieces: Iterator[Buffer], *, require_end_mark: bool = False) -> Iterator[Member]:
    """Yield the members of an archive in order; data after its end mark is read and ignored.

    Args:
        pieces: The archive.
        require_end_mark: Whether to reject an archive without an end mark, which some programs do not write.

    Raises:
        ContentTruncated: The archive ends early.
        ImageCorrupt: The archive is damaged.
        FormatUnsupported: The archive is a later volume of several.
        ImageUnsafe: Extended headers are too large.
    """
    return _Archive(pieces, require_end_mark=require_end_mark).members()


class _PaxHeaders:
    """Values from extended headers for the next member."""

    def __init__(self, shared: dict[str, bytes]) -> None:
        self.values = dict(shared)
        self.parts: list[tuple[int, int]] = []
        self._offset: int | None = None

    def add(self, key: str, value: bytes) -> None:
        # Version 0.0 of the sparse format repeats this pair of keys for each part.
        if key == "GNU.sparse.offset":
            self._offset = decimal(value)
        elif key == "GNU.sparse.numbytes" and self._offset is not None:
            self.parts.append((self._offset, decimal(value)))
            self._offset = None
        elif key == "GNU.sparse.map":
            numbers = [decimal(part) for part in value.split(b",")] if value else []
            if len(numbers) % 2:
                raise corrupt("a sparse map is malformed")
            self.parts = list(zip(numbers[::2], numbers[1::2], strict=True))
        else:
            self.values[key] = value

    def name(self, *keys: str) -> str | None:
        for key in keys:
            if key in self.values:
                return parse_text(self.values[key])
        return None


def _refuse_volume(key: str, value: bytes) -> None:
    """Raise an error for the key that GNU tar writes at the start of each pax volume except the first."""
    if key == "GNU.volume.filename":
        raise later_volume(parse_text(value))


class _Archive:
    def __init__(self, pieces: Iterator[Buffer], *, require_end_mark: bool) -> None:
        self._feed = BufferCursor(pieces, "tar archive")
        self._require_end_mark = require_end_mark
        self._at = 0
        self._shared: dict[str, bytes] = {}

    def members(self) -> Iterator[Member]:
        if not self._feed.window(1):
            raise ContentTruncated("the tar archive is empty")
        while True:
            member = self._next()
            if member is None:
                break
            yield member
            for _ in member._content:  # noqa: SLF001 - what the caller left unread
                pass
            self._take(-member.stored % BLOCK)
        # Consume the rest, because the digest of the transfer covers it.
        while view := self._feed.window(MAX_CHUNK):
            self._feed.advance(len(view))

    def _take(self, count: int) -> bytes:
        self._at += count
        return self._feed.take(count)

    def _header(self) -> Header | None:
        """Return the next header; None at the end mark, which is a block of zeros, or at the end of the content."""
        if not self._feed.window(1):
            if self._require_end_mark:
                raise ContentTruncated("the tar archive ends before its end mark")
            return None
        raw = self._take(BLOCK)
        return parse_header(raw) if any(raw) else None

    def _payload(self, header: Header) -> bytes:
        if header.size > MAX_EXTENDED:
            raise ImageUnsafe(
                f"an extended header of the archive has {header.size} bytes; the limit is {MAX_EXTENDED}",
                remedy="create the archive without such metadata",
            )
        raw = self._take(header.size)
        self._take(-header.size % BLOCK)
        return raw

    def _next(self) -> Member | None:
        extended = _PaxHeaders(self._shared)
        awaited = False
        for _ in range(_EXTENDED_IN_A_ROW):
            header = self._header()
            if header is None:
                if awaited:
                    raise ContentTruncated("the tar archive ends after an extended header")
                return None
            # Global headers and volume labels may stand alone, as in git's archive of an empty tree.
            awaited = awaited or header.type in (b"x", b"X", b"L", b"K")
            match header.type:
                case b"x" | b"X":
                    for key, value in parse_pax(self._payload(header)):
                        _refuse_volume(key, value)
                        extended.add(key, value)
                case b"g":
                    for key, value in parse_pax(self._payload(header)):
                        _refuse_volume(key, value)
                        self._shared[key] = value
                    if sum(len(key) + len(value) for key, value in self._shared.items()) > MAX_EXTENDED:
                        raise ImageUnsafe("the archive's global headers are too large")
                    extended = _PaxHeaders(self._shared)
                case b"L":
                    extended.values.setdefault("path", self._payload(header))
                case b"K":
                    extended.values.setdefault("linkpath", self._payload(header))
                case b"V":
                    # A volume label names the archive, not a member.
                    self._payload(header)
                case b"M":
                    raise later_volume(header.name)
                case _:
                    return self._member(header, extended)
        raise corrupt("extended headers follow one another without a member")

    def _member(self, header: Header, extended: _PaxHeaders) -> Member:
        kind = _KINDS.get(header.type, "other")
        name = extended.name("GNU.sparse.name", "path")
        name = header.name if name is None else name
        if kind == "file" and name.endswith("/") and header.type != b"S":
            kind = "directory"
        link = extended.name("linkpath")
        mtime = extended.values.get("mtime")
        stored = header.size if "size" not in extended.values else decimal(extended.values["size"])
        # A link or directory may state a size but has no content; Go's and Python's readers do the same.
        if kind not in ("file", "other"):
            stored = 0
        size, parts, stored = self._sparse(header, extended, stored) if kind == "file" else (stored, None, stored)
        offset = self._at
        self._at += stored
        return Member(
            name=name,
            kind=kind,
            size=size if kind == "file" else 0,
            stored=stored,
            offset=offset,
            mode=header.mode,
            mtime=header.mtime if mtime is None else parse_time(mtime),
            link=header.link if link is None else link,
            extents=(((0, stored),) if stored else ()) if parts is None else parts,
            _content=self._feed.views(stored, MAX_CHUNK),
        )

    # --- sparse files -------------------------------------------------------------------------------------------

    def _sparse(
        self, header: Header, extended: _PaxHeaders, stored: int
    ) -> tuple[int, tuple[tuple[int, int], ...] | None, int]:
        """Return the size, the parts (None if all is stored) and the stored size of a file."""
        values = extended.values
        if header.type == b"S":
            size, parts = self._old_map(header.raw)
        elif values.get("GNU.sparse.major") == b"1":
            parts, used = self._map_in_content(stored)
            size = decimal(values.get("GNU.sparse.realsize", b""))
            stored -= used
        elif "GNU.sparse.major" in values or "GNU.sparse.size" in values:
            parts, size = extended.parts, decimal(values.get("GNU.sparse.size", b""))
        else:
            return stored, None, stored
        return size, check_sparse(parts, size, stored), stored

    def _old_map(self, raw: bytes) -> tuple[int, list[tuple[int, int]]]:
        parts = list(sparse_entries(raw[386:482]))
        more = raw[482]
        while more:
            block = self._take(BLOCK)
            parts.extend(sparse_entries(block[:504]))
            more = block[504]
            if len(parts) > MAX_SPARSE:
                raise ImageUnsafe(f"a sparse member of the archive has more than {MAX_SPARSE} parts")
        return checked_size(parse_number(raw[483:495])), parts

    def _map_in_content(self, stored: int) -> tuple[list[tuple[int, int]], int]:
        """Read a sparse map of version 1.0, lines before the content padded to a block; return it and its size."""
        used, rest = 0, b""
        numbers: list[int] = []
        wanted = 1
        while len(numbers) < wanted:
            if used + BLOCK > stored:
                raise corrupt("a sparse map does not end within its member")
            *lines, rest = (rest + self._take(BLOCK)).split(b"\n")
            used += BLOCK
            numbers.extend(decimal(line) for line in lines[: wanted - len(numbers)])
            if numbers and wanted == 1:
                if numbers[0] > MAX_SPARSE:
                    raise ImageUnsafe(f"a sparse member of the archive has more than {MAX_SPARSE} parts")
                wanted = 1 + 2 * numbers[0]
                numbers.extend(decimal(line) for line in lines[1:wanted])
            if len(rest) > BLOCK:
                raise corrupt("a sparse map is malformed")
        return list(zip(numbers[1::2], numbers[2::2], strict=True)), used
