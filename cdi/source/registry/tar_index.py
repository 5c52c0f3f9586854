"""An index of the regular files in an uncompressed tar, built from the headers alone.

The standard library trusts the length of an extended header; here every length is bounded by the file and by a limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from cdi.api.errors import ArchiveUnsafe, CdiError, ContentTruncated, FormatUnrecognised, ImageCorrupt, NestedTooDeep
from cdi.image.tar_header import BLOCK, Header, decimal, parse_header, parse_pax, parse_text

_MEMBERS = 20_000
_EXTENDED = 1 << 20
"""Maximum size in bytes of an extended header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file; `offset` and `size` are in bytes."""

    name: str
    offset: int
    size: int


def index_tar(descriptor: int, length: int, *, where: str) -> Iterator[Member]:
    """Yield the regular files of a tar of `length` bytes, in order, without directories and links.

    Raises:
        FormatUnrecognised: The file is not a tar.
        FormatUnsupported: A member is larger than any disk.
        ContentTruncated: The file ends inside a member.
        ArchiveUnsafe: A header is damaged, or an extended header too long.
        NestedTooDeep: There are too many members.

    """
    try:
        yield from _index(descriptor, length)
    except ImageCorrupt as error:
        raise ArchiveUnsafe(error.what, where=where) from error
    except CdiError as error:
        error.where = where
        raise


def _index(descriptor: int, length: int) -> Iterator[Member]:
    position = members = 0
    name: str | None = None
    size: int | None = None
    while position + BLOCK <= length:
        block = os.pread(descriptor, BLOCK, position)
        if not block.strip(b"\0"):
            return
        header = _header(block, first=position == 0)
        members += 1
        if members > _MEMBERS:
            raise NestedTooDeep(f"the archive has more than {_MEMBERS} members")
        extended = header.type in (b"x", b"g", b"L", b"K")
        data = position + BLOCK
        # A pax size replaces the size of the member, but not that of extended headers before it.
        actual = header.size if extended or size is None else size
        if actual > length - data:
            raise ContentTruncated("the archive ends inside a member")
        if extended:
            if actual > _EXTENDED:
                raise ArchiveUnsafe("an extended header of the archive is too long")
            content = os.pread(descriptor, actual, data)
            if header.type == b"L":
                name = parse_text(content)
            elif header.type == b"x":
                for key, value in parse_pax(content):
                    if key == "path":
                        name = value.decode("utf-8", "surrogateescape")
                    elif key == "size":
                        size = decimal(value)
        else:
            if header.type in (b"0", b"\0", b"7"):
                yield Member(name=_plain(header.name if name is None else name), offset=data, size=actual)
            name = size = None
        position = data + (actual + BLOCK - 1) // BLOCK * BLOCK
    if position == 0:
        raise FormatUnrecognised("the file is shorter than a tar header")


def _header(block: bytes, *, first: bool) -> Header:
    try:
        return parse_header(block)
    except ImageCorrupt as error:
        if first:
            raise FormatUnrecognised("the file is not a tar archive") from error
        raise


def _plain(name: str) -> str:
    """Return the name without the leading ``./`` that some tar writers add."""
    while name.startswith("./"):
        name = name[2:]
    return name
