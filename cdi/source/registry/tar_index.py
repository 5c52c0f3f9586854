"""An index of the regular files in an uncompressed tar, built from the headers alone.

Follows POSIX pax (ustar, ``x`` and ``g`` headers) and GNU's long names and base-256 numbers. The standard library
trusts the length of an extended header; here every length is bounded by the file and by a limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cdi.api.errors import ArchiveUnsafe, ContentTruncated, FormatUnrecognised, NestedTooDeep

BLOCK = 512
_MEMBERS = 20_000
_EXTENDED = 1 << 20
_PAX = re.compile(rb"(\d{1,7}) ([^=\n]{1,255})=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file; `offset` and `size` are in bytes."""

    name: str
    offset: int
    size: int


def index_tar(descriptor: int, length: int, *, where: str) -> Iterator[Member]:
    """Yield the regular files of a tar of `length` bytes, in order, without directories and links.

    Raises `FormatUnrecognised` if the file is not a tar, `ContentTruncated`, `ArchiveUnsafe`, or `NestedTooDeep` for
    too many members.
    """
    position = 0
    name: str | None = None
    size: int | None = None
    members = 0
    while position + BLOCK <= length:
        header = os.pread(descriptor, BLOCK, position)
        if not header.strip(b"\0"):
            return
        _check_header(header, first=position == 0, where=where)
        members += 1
        if members > _MEMBERS:
            raise NestedTooDeep(f"the archive has more than {_MEMBERS} members", where=where)
        stated = _number(header[124:136], where)
        kind = header[156:157]
        data = position + BLOCK
        # A pax size replaces the size of the member, but not that of extended headers before it.
        actual = stated if kind in b"xgLK" or size is None else size
        if actual > length - data:
            raise ContentTruncated("the archive ends inside a member", where=where)
        if kind in b"xgLK" and kind:
            if actual > _EXTENDED:
                raise ArchiveUnsafe("an extended header of the archive is too long", where=where)
            content = os.pread(descriptor, actual, data)
            if kind == b"L":
                name = _text(content.partition(b"\0")[0])
            elif kind == b"x":
                fields = _pax(content, where)
                name = _text(fields[b"path"]) if b"path" in fields else name
                size = _pax_size(fields, where)
        else:
            if kind in (b"0", b"\0", b"7"):
                yield Member(name=_plain(name if name is not None else _header_name(header)), offset=data, size=actual)
            name = size = None
        position = data + (actual + BLOCK - 1) // BLOCK * BLOCK
    if position == 0:
        raise FormatUnrecognised("the file is shorter than a tar header", where=where)


def _check_header(header: bytes, *, first: bool, where: str) -> None:
    total = sum(header[:148]) + sum(header[156:]) + 8 * 0x20
    text = header[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,8}", text) or int(text, 8) != total:
        if first:
            raise FormatUnrecognised("the file is not a tar archive", where=where)
        raise ArchiveUnsafe("a header in the archive is damaged", where=where)


def _number(raw: bytes, where: str) -> int:
    if raw[0] == 0x80:  # GNU: a big-endian number in the rest of the field
        return int.from_bytes(raw[1:], "big")
    text = raw.partition(b"\0")[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", text):
        raise ArchiveUnsafe("a member of the archive has no valid size", where=where)
    return int(text or b"0", 8)


def _pax(content: bytes, where: str) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        match = _PAX.match(content, position)
        end = position + int(match[1]) if match else 0
        if match is None or end <= match.end() or end > len(content):
            raise ArchiveUnsafe("an extended header of the archive is damaged", where=where)
        fields[match[2]] = content[match.end() : end - 1]
        position = end
    return fields


def _pax_size(fields: dict[bytes, bytes], where: str) -> int | None:
    if b"size" not in fields:
        return None
    if not re.fullmatch(rb"[0-9]{1,19}", fields[b"size"]):
        raise ArchiveUnsafe("a member of the archive has no valid size", where=where)
    return int(fields[b"size"])


def _header_name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _plain(name: str) -> str:
    """Return the name without the leading ``./`` that some tar writers add."""
    while name.startswith("./"):
        name = name[2:]
    return name
