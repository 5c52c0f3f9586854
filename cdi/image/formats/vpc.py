"""VHD, which QEMU calls vpc, after Microsoft's Virtual Hard Disk Image Format Specification 1.0."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import BackingFileRefused, FormatUnsupported, ImageCorrupt, ImageUnsafe
from cdi.image.checks import Checklist, quoted
from cdi.image.formats import signatures
from cdi.image.formats.content import Inspection, RandomAccessContent, Steps
from cdi.image.info import ImageInfo
from cdi.image.sizes import SECTOR

FOOTER: Final = 512
SHORT_FOOTER: Final = 511
"""Of Virtual PC before 2007, which leaves out the footer's last byte; it is reserved and zero."""
_DYNAMIC_COOKIE: Final = b"cxsparse"
_DYNAMIC_HEADER: Final = 1024

MAX_TABLE: Final = 64 << 20
"""Bytes of a block map; one of 2 TiB in the usual blocks of 2 MiB has 4 MiB."""

_MAPPED_BLOCKS: Final = range(4096, (4 << 20) + 1)
"""Sizes of blocks that the project's own reader reads; usual are 512 KiB and 2 MiB.

A block is read with its sector bitmap as one unit, in memory. QEMU takes smaller blocks to have no bitmap.
"""

_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_TYPES: Final = {_FIXED: "fixed", _DYNAMIC: "dynamic", _DIFFERENCING: "differencing"}

_MAX_GEOMETRY: Final = 65535 * 16 * 255
MAX_SECTORS: Final = 0xFF00_0000
_TRUE_SIZE_APPS: Final = (b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0", b"wa\0\0")
"""Writers whose footer says the size that a guest sees; with others the geometry does, as in QEMU's
driver (whose older versions do not know Azure's ``wa`` and cut its disks short)."""

_FOOTER_FORM: Final = struct.Struct(">8sIIQI4sI4sQQHBBII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The 512 bytes at the end of every VHD, and at the start of those that are not fixed."""

    kind: int
    data_offset: int
    creator: bytes
    virtual_size: int
    """Bytes, as QEMU's driver has it."""
    checksum_holds: bool

    @property
    def variant(self) -> str:
        return _TYPES.get(self.kind, f"type {self.kind}")


def parse_footer(data: bytes) -> Footer | None:
    """Return the footer in exactly these 512 bytes, or None if they are something else."""
    if len(data) != FOOTER or not data.startswith(signatures.VHD):
        return None
    (_, _, _, data_offset, _, creator, _, _, _, current, cylinders, heads, sectors, kind, checksum) = (
        _FOOTER_FORM.unpack_from(data)
    )
    by_geometry = cylinders * heads * sectors
    if creator in _TRUE_SIZE_APPS or by_geometry == _MAX_GEOMETRY:
        by_geometry = current // SECTOR
    return Footer(
        kind=kind,
        data_offset=data_offset,
        creator=creator,
        virtual_size=by_geometry * SECTOR,
        checksum_holds=_checksum(data, 64) == checksum,
    )


def fixed_payload(tail: bytes, length: int) -> int | None:
    """Return the size of the disk if `tail`, the last 512 of `length` bytes, ends with a fixed VHD's footer.

    Serves streams too, whose end is seen only when the rest was written: bytes past this size are no disk's.
    """
    footer = _fixed_footer(tail, length)
    return None if footer is None else min(footer.virtual_size, length - footer_size(length))


def footer_size(length: int) -> int:
    """Return the bytes of the footer in a fixed VHD of `length` bytes: what precedes it are whole sectors."""
    return SHORT_FOOTER if length % SECTOR == SHORT_FOOTER else FOOTER


def _fixed_footer(tail: bytes, length: int) -> Footer | None:
    """Return the footer of a fixed VHD, None where the content of `length` bytes ends with something else.

    A disk that merely ends in something like a footer is not taken for one: the checksum must hold.
    """
    size = footer_size(length)
    footer = parse_footer(tail[-size:].ljust(FOOTER, b"\0")) if len(tail) >= size else None
    if footer is None or footer.kind != _FIXED or not footer.checksum_holds:
        return None
    return footer


def inspect_fixed(content: RandomAccessContent, tail: bytes) -> ImageInfo | None:
    """Raw content with a footer behind it; None where `tail`, the last 512 bytes of the content, has none."""
    footer = None if content.length is None else _fixed_footer(tail, content.length)
    if footer is None or content.length is None:
        return None
    checks = Checklist("vhd")
    size = footer.virtual_size
    sized = checks.expect_size(size, MAX_SECTORS * SECTOR)
    room = content.length - footer_size(content.length)
    if sized:
        checks.check(size <= room, "disk within the file", f"a disk of {size} bytes in {room} bytes")
    passed = checks.raise_for_failures()
    return ImageInfo(
        format="vpc",
        variant="fixed",
        virtual_size=size,
        version=1,
        raw_extent=(0, size),
        details=(("made by", quoted(footer.creator)),),
        checks=passed,
    )


def inspect(content: RandomAccessContent) -> Inspection:
    """Inspect a VHD that begins with a copy of its footer.

    Raises:
        ImageError: the gravest check that failed.
    """
    footer = parse_footer(content.head[:FOOTER])
    if footer is None:
        raise ImageCorrupt("the file ends within the footer's copy", where="vhd")
    checks = Checklist("vhd")
    checks.check(footer.checksum_holds, "footer checksum", "holds" if footer.checksum_holds else "it is damaged")
    overlay = footer.kind == _DIFFERENCING
    checks.check(
        not overlay,
        "parent image",
        "it is a differencing image that needs a parent" if overlay else "none",
        BackingFileRefused,
    )
    if not overlay:
        known = footer.kind == _DYNAMIC
        checks.check(known, "disk type", f"{footer.variant}, with a footer in front", FormatUnsupported)
    size = footer.virtual_size
    sized = checks.expect_size(size, MAX_SECTORS * SECTOR)
    block_size = (yield from _dynamic_header(content, footer, checks)) if sized else None
    passed = checks.raise_for_failures()
    return ImageInfo(
        format="vpc",
        variant="dynamic",
        virtual_size=size,
        cluster_size=block_size,
        version=1,
        needs_qemu=() if block_size in _MAPPED_BLOCKS else (f"its blocks have {block_size} bytes",),
        details=(("made by", quoted(footer.creator)),),
        checks=passed,
    )


def _dynamic_header(content: RandomAccessContent, footer: Footer, checks: Checklist) -> Steps[int | None]:
    """Return the block size, or None if the header cannot be read, which the checks then report."""
    at = footer.data_offset
    placed = at >= FOOTER and at % SECTOR == 0 and content.reachable(at, _DYNAMIC_HEADER)
    if not checks.check(placed, "dynamic header place", f"the dynamic header is at offset {at:#x}"):
        return None
    data = yield from content.read(at, _DYNAMIC_HEADER)
    whole = len(data) == _DYNAMIC_HEADER and data.startswith(_DYNAMIC_COOKIE)
    if not checks.check(whole, "dynamic header", "found" if whole else "the dynamic header is missing"):
        return None
    table, version, entries, block_size, checksum = struct.unpack_from(">QIIII", data, 16)
    holds = _checksum(data, 36) == checksum
    checks.check(holds, "dynamic header checksum", "holds" if holds else "the dynamic header is damaged")
    checks.check(version >> 16 == 1, "version", f"version {version >> 16}.{version & 0xFFFF}", FormatUnsupported)
    sound = block_size >= SECTOR and block_size & (block_size - 1) == 0
    checks.check(sound, "block size", f"blocks of {block_size} bytes")
    checks.check(
        entries * block_size >= footer.virtual_size,
        "map covers the disk",
        f"{entries} blocks of {block_size} bytes for a disk of {footer.virtual_size} bytes",
    )
    checks.check(entries * 4 <= MAX_TABLE, "map size", f"the block map has {entries} entries", ImageUnsafe)
    checks.check(table >= FOOTER and table % SECTOR == 0, "map place", f"the block map is at offset {table:#x}")
    if content.length is not None:
        end = table + entries * 4
        checks.check(end <= content.length, "map within the file", f"it ends at {end} of {content.length} bytes")
    return int(block_size)


def _checksum(data: bytes, field: int) -> int:
    """Return the complement of the sum of all bytes except those of the checksum itself."""
    return ~(sum(data) - sum(data[field : field + 4])) & 0xFFFF_FFFF
