"""The fields of tar headers: POSIX ustar and pax, and GNU's extensions (tar(5), GNU tar manual appendices D and E)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cdi.api.errors import FormatUnsupported, ImageCorrupt
from cdi.image.sizes import require_size

BLOCK = 512
SPARSE_MOST = 1 << 18
"""The most parts that a sparse member may have."""

_REMEDY = "build the archive again and publish it"


def corrupt(what: str) -> ImageCorrupt:
    return ImageCorrupt(f"the tar archive is damaged: {what}", remedy=_REMEDY)


def later_volume(name: str) -> FormatUnsupported:
    """Return the error for an archive that goes on with a member which an earlier volume began."""
    return FormatUnsupported(
        f"the tar archive is a later volume of several, and goes on with {name[:200]!r}",
        remedy="extract all volumes together (tar -x -M -f FIRST -f SECOND ...) and publish the image in one file",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One block, as it stands; names are not yet those of extended headers."""

    name: str
    type: bytes
    size: int
    mode: int
    mtime: float
    link: str
    raw: bytes


def text(raw: bytes) -> str:
    """A field up to its NUL.  What is not UTF-8 survives as surrogates, so that names come out as they went in."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def number(raw: bytes) -> int:
    """An octal field, or GNU's base-256 one; raises `ImageCorrupt`."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes((raw[0] & 0x7F,)) + raw[1:], "big")
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    digits = raw.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    try:
        return int(digits, 8)
    except ValueError as error:
        raise corrupt(f"{digits!r} is no octal number") from error


def length(value: int) -> int:
    """Return `value` if it can be a size or an offset; raise `ImageCorrupt` or `FormatUnsupported`."""
    if value < 0:
        raise corrupt(f"{value} is no size")
    return require_size(value, "a member of the tar archive has")


def decimal(raw: bytes) -> int:
    """A pax record's number; raises `ImageCorrupt`."""
    # int() would also take signs, spaces and underscores.
    if not raw.isdigit() or len(raw) > 19:
        raise corrupt(f"{raw[:40]!r} is no decimal number")
    return length(int(raw))


def parse_header(raw: bytes) -> Header:
    """A header block; raises `ImageCorrupt`."""
    stored = number(raw[148:156])
    blank = raw[:148] + b" " * 8 + raw[156:]
    # Some old writers summed signed bytes.
    if stored not in (sum(blank), sum(blank) - 256 * sum(byte >> 7 for byte in blank)):
        raise corrupt("a header's check sum is wrong")
    name = text(raw[:100])
    if raw[257:263] == b"ustar\0" and raw[345]:
        name = f"{text(raw[345:500])}/{name}"
    return Header(
        name=name,
        type=raw[156:157],
        size=length(number(raw[124:136])),
        mode=number(raw[100:108]) & 0o7777,
        mtime=_time(number(raw[136:148])),
        link=text(raw[157:257]),
        raw=raw,
    )


def parse_pax(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """The records of an extended header, ``length key=value`` and a newline; raises `ImageCorrupt`."""
    at = 0
    # GNU tar pads with NULs at times.
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
    """A pax time, seconds; raises `ImageCorrupt`."""
    try:
        value = float(raw[:40])
    except ValueError as error:
        raise corrupt(f"{raw[:40]!r} is no time") from error
    if value != value:  # noqa: PLR0124 - not a number is the only value that differs from itself
        raise corrupt("a time is not a number")
    return _time(value)


def _time(seconds: float) -> float:
    """Within what ext4 can store: no time stamp is worth refusing an archive."""
    return float(min(max(seconds, -(1 << 31)), 1 << 33))


def sparse_entries(raw: bytes) -> Iterator[tuple[int, int]]:
    """Parts in an old GNU sparse header: pairs of offset and length, an empty one ends them."""
    for at in range(0, len(raw) - 23, 24):
        if not raw[at]:
            return
        yield length(number(raw[at : at + 12])), length(number(raw[at + 12 : at + 24]))


def check_sparse(parts: list[tuple[int, int]], size: int, stored: int) -> tuple[tuple[int, int], ...]:
    """The parts of a sparse member in order, without empty ones; raises `ImageCorrupt`."""
    end = total = 0
    for offset, count in parts:
        if offset < end or offset + count > size:
            raise corrupt("the parts of a sparse member overlap or lie outside of it")
        end = offset + count
        total += count
    if total != stored:
        raise corrupt("the parts of a sparse member do not add up to what is stored")
    return tuple(part for part in parts if part[1])
