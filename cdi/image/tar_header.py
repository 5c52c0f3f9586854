"""Parsers for tar headers: POSIX ustar and pax, and GNU extensions (tar(5), GNU tar manual appendices D and E)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cdi.api.errors import FormatUnsupported, ImageCorrupt
from cdi.image.sizes import require_size

BLOCK = 512
MAX_SPARSE = 1 << 18
"""Maximum number of parts of a sparse member."""

_REMEDY = "create the archive again"


def corrupt(what: str) -> ImageCorrupt:
    return ImageCorrupt(f"the tar archive is damaged: {what}", remedy=_REMEDY)


def later_volume(name: str) -> FormatUnsupported:
    """Return the error for an archive that continues a member of an earlier volume."""
    return FormatUnsupported(
        f"the tar archive is a later volume of several, and continues {name[:200]!r}",
        remedy="extract all volumes together (tar -x -M -f FIRST -f SECOND ...) and publish the image in one file",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header block; extended headers are not applied to it yet."""

    name: str
    type: bytes
    size: int
    mode: int
    mtime: float
    link: str
    raw: bytes


def parse_text(raw: bytes) -> str:
    """Return a field up to its NUL; bytes that are not UTF-8 become surrogates, so that names keep their bytes."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def parse_number(raw: bytes) -> int:
    """Parse a numeric field, octal or in GNU's base 256; raise `ImageCorrupt` if it is malformed."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes((raw[0] & 0x7F,)) + raw[1:], "big")
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    digits = raw.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    try:
        return int(digits, 8)
    except ValueError as error:
        raise corrupt(f"{digits!r} is not an octal number") from error


def checked_size(value: int) -> int:
    """Return `value` if it can be a size or an offset; raise `ImageCorrupt` or `FormatUnsupported`."""
    if value < 0:
        raise corrupt(f"{value} is not a valid size")
    return require_size(value, "a member of the tar archive has")


def decimal(raw: bytes) -> int:
    """Parse a number in a pax record; raise `ImageCorrupt` if it is malformed."""
    # int() would also accept signs, spaces and underscores.
    if not raw.isdigit() or len(raw) > 19:
        raise corrupt(f"{raw[:40]!r} is not a decimal number")
    return checked_size(int(raw))


def parse_header(raw: bytes) -> Header:
    """Parse a header block; raise `ImageCorrupt` if it is invalid."""
    stored = parse_number(raw[148:156])
    blank = raw[:148] + b" " * 8 + raw[156:]
    # Some old programs sum signed bytes.
    if stored not in (sum(blank), sum(blank) - 256 * sum(byte >> 7 for byte in blank)):
        raise corrupt("a header has a wrong checksum")
    name = parse_text(raw[:100])
    if raw[257:263] == b"ustar\0" and raw[345]:
        name = f"{parse_text(raw[345:500])}/{name}"
    return Header(
        name=name,
        type=raw[156:157],
        size=checked_size(parse_number(raw[124:136])),
        mode=parse_number(raw[100:108]) & 0o7777,
        mtime=_time(parse_number(raw[136:148])),
        link=parse_text(raw[157:257]),
        raw=raw,
    )


def parse_pax(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the records of an extended header as ``(key, value)``; raise `ImageCorrupt` if one is malformed.

    A record is ``length key=value`` and a newline.
    """
    at = 0
    # GNU tar sometimes pads with NULs.
    end = len(raw.rstrip(b"\0"))
    while at < end:
        space = raw.find(b" ", at, at + 20)
        if space < 0:
            raise corrupt("a pax record has no length")
        stop = at + decimal(raw[at:space])
        record = raw[space + 1 : stop]
        key, equals, value = record[:-1].partition(b"=")
        if stop > len(raw) or stop <= space or record[-1:] != b"\n" or not equals:
            raise corrupt("a pax record is malformed")
        yield key.decode("utf-8", "surrogateescape"), value
        at = stop


def parse_time(raw: bytes) -> float:
    """Parse a pax time in seconds; raise `ImageCorrupt` if it is malformed."""
    try:
        value = float(raw[:40])
    except ValueError as error:
        raise corrupt(f"{raw[:40]!r} is not a valid time") from error
    if value != value:  # noqa: PLR0124 - not a number is the only value that differs from itself
        raise corrupt("a time is not a number")
    return _time(value)


def _time(seconds: float) -> float:
    """Clamp a time to the range that ext4 can store: a time stamp is no reason to reject an archive."""
    return float(min(max(seconds, -(1 << 31)), 1 << 33))


def sparse_entries(raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield the parts in an old GNU sparse header, as ``(offset, length)``, up to the first empty entry."""
    for at in range(0, len(raw) - 23, 24):
        if not raw[at]:
            return
        yield checked_size(parse_number(raw[at : at + 12])), checked_size(parse_number(raw[at + 12 : at + 24]))


def check_sparse(parts: list[tuple[int, int]], size: int, stored: int) -> tuple[tuple[int, int], ...]:
    """Return the non-empty parts of a sparse member in order; raise `ImageCorrupt` if they are inconsistent."""
    end = total = 0
    for offset, count in parts:
        if offset < end or offset + count > size:
            raise corrupt("the parts of a sparse member overlap or lie outside of it")
        end = offset + count
        total += count
    if total != stored:
        raise corrupt("the parts of a sparse member do not match its stored size")
    return tuple(part for part in parts if part[1])
