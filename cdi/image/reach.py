"""Whether a file holds all that its own tables refer to.

QEMU reads zeros past the end of a file, so an image that was cut at its source would become a disk with holes in it.
Here the tables are walked once, before anything is written: the furthest byte that they need must be in the file.

No I/O: the caller answers ranges.  Nothing is kept but the piece at hand, and no table is read that could not be in the
file, so the work is bounded by the file's length and not by what a header claims.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from cdi.api.errors import ContentTruncated, ImageCorrupt, ImageError
from cdi.image.checks import Check
from cdi.image.formats import vhdx, vmdk, vpc
from cdi.image.formats.qcow2 import Qcow2Header, parse_header
from cdi.image.info import ImageInfo
from cdi.image.sizes import MEBI, SECTOR, round_up

NAME: Final = "data within the file"

Read = Callable[[Sequence[tuple[int, int]]], Iterable[bytes]]
"""Answers ranges, (offset, length) in bytes, in their order.  Each is at most 1 MiB and lies within the file; those of
one call are 4 MiB at most and may be fetched at the same time."""

_PIECE: Final = 1 << 20
_AT_ONCE: Final = 4 << 20
_DIRECTORY_PIECE: Final = 64 << 10
"""Of a table of tables: each of its entries becomes a tuple for as long as its piece is walked."""
_GAP: Final = 128 << 10
"""Reading over so many bytes between two tables is cheaper than another range."""
_HEAD: Final = 64 << 10

_QCOW2_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_QCOW2_COMPRESSED: Final = 1 << 62
_QCOW2_ZERO: Final = 1
_VMDK_MARKED: Final = 1 << 17
_VMDK_ZERO_GRAIN: Final = 1 << 2
_VHD_UNUSED: Final = 0xFFFF_FFFF
_VDI_DISCARDED: Final = 0xFFFF_FFFE
_VHDX_PRESENT: Final = 6
"""Of payload blocks, 6 is "fully" and 7 "partially"; any other state reads as zeros."""
_VHDX_OFFSET: Final = 0xFFFF_FFFF_FFF0_0000
_VHDX_SECTORS: Final = 1 << 23
"""Of the disk, for which one entry of a sector bitmap stands between those of the blocks."""


def check_reach(image: ImageInfo, length: int, read: Read) -> Check | None:
    """The check that passed, for an image of `length` bytes; None where the format has no tables.

    Raises `ContentTruncated` where something that the disk needs lies past the end of the file, `ImageCorrupt` where
    it lies further than any writer would have put it, or where tables lie upon each other.  Of a last block, the part
    past the disk's end need not be there, except in a VHD.
    """
    if image.payload is not None or image.format == "raw" or image.virtual_size is None:
        return None
    walk = _Walk(image=image, size=image.virtual_size, length=length, read=read)
    match image.format:
        case "vmdk":
            _vmdk(walk)
        case "vpc":
            _vhd(walk)
        case "vdi":
            _vdi(walk)
        case "vhdx":
            _vhdx(walk)
        case "qcow2":
            _qcow2(walk)
    return within(length)


def within(length: int) -> Check:
    """That all is in a file of `length` bytes, however that was found out."""
    return Check(name=NAME, passed=True, detail=f"all that its tables refer to is within its {length} bytes")


@dataclass(slots=True, kw_only=True)
class _Walk:
    """The file, and what must hold of every place in it that a table names."""

    image: ImageInfo
    size: int
    """Of the disk."""
    length: int
    """Of the file."""
    read: Read
    tables: int = 0
    """Bytes of tables so far."""
    served: int = 0
    """Bytes read so far, with what lay between tables."""
    last: tuple[int, int, int] = (0, 0, 0)
    """Of compressed data: place in the file and on the disk of the piece that begins last, with its size between them.
    One that begins before another ends before it too."""

    def need(self, what: str, start: int, end: int) -> None:
        """Have the bytes from `start` to `end` in the file, or raise."""
        if end > self.length:
            self.refuse(what, start, end)

    def need_data(self, guest: int, host: int, size: int) -> None:
        """As `need`, for a block of the disk, whose part past the disk's end does not matter."""
        self.need(_at(guest), host, host + min(size, self.size - guest))

    def refuse(self, what: str, start: int, end: int) -> NoReturn:
        said = f"{what} is kept at bytes {start} to {end} of a file of {self.length}"
        # Every block once and the tables: twice that, and a GiB for small disks, is no writer's.
        if start > 2 * self.size + (1 << 30):
            raise self._error(ImageCorrupt, said)
        raise self._error(ContentTruncated, f"{said}: it is cut short")

    def corrupt(self, what: str) -> NoReturn:
        raise self._error(ImageCorrupt, what)

    def changed(self) -> NoReturn:
        """For what inspection found a moment ago."""
        self.corrupt("its headers are not what they were")

    def block(self) -> int:
        """Bytes of the unit of allocation."""
        if not self.image.cluster_size:
            self.changed()
        return self.image.cluster_size

    def _error(self, kind: type[ImageError], what: str) -> ImageError:
        error = kind(what, where="vhd" if self.image.format == "vpc" else self.image.format)
        error.checks = (Check(name=NAME, passed=False, detail=what),)
        return error

    def one(self, offset: int, size: int) -> bytes:
        """A few bytes; raises where the file ends before them."""
        self.need("a header", offset, offset + size)
        return next(iter(self._answers([(offset, size)])))

    def run(self, what: str, offset: int, size: int, piece: int = _PIECE) -> Iterator[tuple[int, bytes]]:
        """A table that is in one place, as (bytes before, bytes)."""
        self.need(what, offset, offset + size)
        for first in range(0, size, _AT_ONCE):
            starts = range(first, min(size, first + _AT_ONCE), _PIECE)
            answers = self._answers([(offset + start, min(_PIECE, size - start)) for start in starts])
            for start, data in zip(starts, answers, strict=True):
                for at in range(0, len(data), piece):
                    yield start + at, data[at : at + piece]

    def scattered(self, what: str, tables: list[tuple[int, int, int]]) -> Iterator[tuple[int, bytes]]:
        """Tables, given as (key, offset, size) of at most a piece each, as (key, bytes); in the order of the file.

        A table that stands for several parts of the disk is read once, for one of them.
        """
        tables.sort(key=lambda table: (table[1], -table[2]))
        # Tables in an order that no writer has could have what lies between them read again and again.
        gap = _GAP if self.served < 2 * self.length else 0
        groups: list[list[tuple[int, int, int]]] = []
        ranges: list[tuple[int, int]] = []
        wanted, before = 0, -1
        for table in tables:
            key, offset, size = table
            self.need(f"{what} {key}", offset, offset + size)
            if offset == before:
                continue
            before = offset
            # Each lies in the file and none upon another, or a small file would describe an endless disk.
            self.tables += max(size, SECTOR)
            if self.tables > round_up(self.length, SECTOR):
                self.corrupt(f"its {what}s are more than the file has room for: they lie upon each other")
            if ranges:
                start, extent = ranges[-1]
                end = max(start + extent, offset + size)
                more = end - start - extent
                if offset <= start + extent + gap and extent + more <= _PIECE and wanted + more <= _AT_ONCE:
                    wanted += more
                    ranges[-1] = (start, end - start)
                    groups[-1].append(table)
                    continue
            if wanted + size > _AT_ONCE:
                yield from self._cut(groups, ranges)
                groups, ranges, wanted = [], [], 0
            groups.append([table])
            ranges.append((offset, size))
            wanted += size
        yield from self._cut(groups, ranges)

    def _cut(
        self, groups: list[list[tuple[int, int, int]]], ranges: list[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        for group, (start, _), data in zip(groups, ranges, self._answers(ranges), strict=True):
            for key, offset, size in group:
                yield key, data[offset - start : offset - start + size]

    def _answers(self, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
        if not ranges:
            return
        for (offset, size), data in zip(ranges, self.read(ranges), strict=True):
            if len(data) != size:
                self.refuse("a table", offset, offset + size)
            self.served += size
            yield data


# --- one table --------------------------------------------------------------------------------------------------


def _vhd(walk: _Walk) -> None:
    """VHD 1.0, "Block Allocation Table and Data Blocks": sector numbers, of a bitmap with the block behind it."""
    footer = vpc.parse_footer(walk.one(0, vpc.FOOTER))
    block = walk.block()
    if footer is None:
        walk.changed()
    table = int.from_bytes(walk.one(footer.data_offset + 16, 8), "big")
    blocks = -(-walk.size // block)
    bitmap = round_up(-(-block // (SECTOR * 8)), SECTOR)
    safe = (walk.length - bitmap - block) // SECTOR
    for before, data in walk.run("the block map", table, 4 * blocks):
        for index, entry in enumerate(_big("I", data), before // 4):
            if entry > safe and entry != _VHD_UNUSED:
                # The last block too is whole, with a footer behind it; QEMU refuses anything else.
                walk.need(_at(index * block), entry * SECTOR, entry * SECTOR + bitmap + block)


def _vdi(walk: _Walk) -> None:
    """VirtualBox' VDICore.h: block numbers, counted from where the data begins."""
    table, origin = struct.unpack("<II", walk.one(340, 8))
    blocks = -(-walk.size // MEBI)
    safe = (walk.length - origin) // MEBI - 1
    for before, data in walk.run("the block map", table, 4 * blocks):
        for index, entry in enumerate(_little("I", data), before // 4):
            if entry > safe and entry < _VDI_DISCARDED:
                walk.need_data(index * MEBI, origin + entry * MEBI, MEBI)


def _vhdx(walk: _Walk) -> None:
    """[MS-VHDX] 2.5, "Block Allocation Table"; without a parent the sector bitmaps among its entries are not read."""
    block = walk.block()
    place = vhdx.block_table(walk.one(vhdx.REGION_TABLE, _HEAD))
    if place is None:
        walk.changed()
    ratio = _VHDX_SECTORS * SECTOR // block
    blocks = -(-walk.size // block)
    entries = blocks + max(blocks - 1, 0) // ratio
    safe = walk.length - block
    for before, data in walk.run("the block table", place, 8 * entries):
        for index, entry in enumerate(_little("Q", data), before // 8):
            if entry & 7 < _VHDX_PRESENT or entry & _VHDX_OFFSET <= safe:
                continue
            chunk, number = divmod(index, ratio + 1)
            if number < ratio:
                walk.need_data((chunk * ratio + number) * block, entry & _VHDX_OFFSET, block)


# --- tables of tables -------------------------------------------------------------------------------------------


def _vmdk(walk: _Walk) -> None:
    """Virtual Disk Format 5.0, "Hosted Sparse Extent Metadata": a directory of tables of sector numbers.

    Where grains are compressed, a marker before each says how long it is; only the last one's is read.
    """
    header = vmdk.Header.parse(walk.one(0, SECTOR))
    placed = header
    if header is not None and header.directory_offset == vmdk.AT_END:
        # The footer says the same of the disk, and where the directory is.
        placed = vmdk.Header.parse(walk.one(round_up(walk.length, SECTOR) - 2 * SECTOR, SECTOR))
    if header is None or placed is None:
        walk.changed()
    grain, entries = header.grain * SECTOR, header.table_entries
    grains = -(-header.capacity // header.grain)
    packed = header.compression != 0
    marker = 12 if packed and placed.flags & _VMDK_MARKED else 0

    def unused(place: int) -> bool:
        return place == 0 or (place == 1 and bool(placed.flags & _VMDK_ZERO_GRAIN))

    for before, data in walk.run(
        "the grain directory", placed.directory_offset * SECTOR, 4 * -(-grains // entries), _DIRECTORY_PIECE
    ):
        tables = [
            (index, place * SECTOR, 4 * min(entries, grains - index * entries))
            for index, place in enumerate(_little("I", data), before // 4)
            if place
        ]
        for index, table in walk.scattered("grain table", tables):
            places = _little("I", table)
            furthest = max(places)
            if packed:
                if furthest * SECTOR > walk.last[0] and not unused(furthest):
                    guest, size = (index * entries + places.index(furthest)) * grain, max(1, marker)
                    walk.need(_at(guest), furthest * SECTOR, furthest * SECTOR + size)
                    walk.last = (furthest * SECTOR, size, guest)
            elif furthest * SECTOR + grain > walk.length:
                for number, place in enumerate(places, index * entries):
                    if not unused(place):
                        walk.need_data(number * grain, place * SECTOR, grain)
    host, size, guest = walk.last
    if marker and host:
        walk.need(_at(guest), host, host + size + int.from_bytes(walk.one(host + 8, 4), "little"))


def _qcow2(walk: _Walk) -> None:
    """QEMU's docs/interop/qcow2.txt, "L1/L2 table entries", with the extended ones."""
    header = parse_header(walk.one(0, min(_HEAD, walk.length)), walk.length)
    cluster, width = header.cluster_size, header.l2_entry_size
    clusters = -(-walk.size // cluster)
    for before, data in walk.run("the L1 table", header.l1_offset, 8 * header.l1_needed, _DIRECTORY_PIECE):
        tables = []
        for index, entry in enumerate(_big("Q", data), before // 8):
            place = entry & _QCOW2_OFFSET
            if place == 0:
                continue
            if place % cluster:
                walk.corrupt(f"L2 table {index} at {place:#x} is not aligned to a cluster")
            walk.need(f"L2 table {index}", place, place + cluster)
            first = index * header.l2_entries
            size = width * min(header.l2_entries, clusters - first)
            # The largest clusters have tables of more than a piece.
            tables += [(first + at // width, place + at, min(_PIECE, size - at)) for at in range(0, size, _PIECE)]
        for first, table in walk.scattered("L2 table", tables):
            _l2_table(walk, header, first, table)
    _last_inflates(walk, header)


def _l2_table(walk: _Walk, header: Qcow2Header, first: int, table: bytes) -> None:
    """`first` is the number of the cluster that its first entry stands for."""
    cluster = header.cluster_size
    words = _big("Q", table)
    entries, bitmaps = (words[::2], words[1::2]) if header.extended_l2 else (words, None)
    if max(map(_QCOW2_OFFSET.__and__, entries)) + cluster <= walk.length and not any(
        map(_QCOW2_COMPRESSED.__and__, entries)
    ):
        return
    length = walk.length
    shift = 62 - (header.cluster_bits - 8)
    for number, entry in enumerate(entries):
        host, size = entry & _QCOW2_OFFSET, cluster
        if entry & _QCOW2_COMPRESSED:
            host = entry & ((1 << shift) - 1)
            size = (((entry & (_QCOW2_COMPRESSED - 1)) >> shift) + 1) * SECTOR - host % SECTOR
            if host >= length:
                walk.refuse(_at((first + number) * cluster), host, host + size)
            if host > walk.last[0]:
                walk.last = (host, size, (first + number) * cluster)
            continue
        if bitmaps is not None:
            size = (bitmaps[number] & 0xFFFF_FFFF).bit_length() * (cluster // 32)
        elif entry & _QCOW2_ZERO and header.version >= 3:
            continue
        # As in `cdi.image.qcow2map`: writers end a file within a cluster, between sectors; accidents anywhere.
        if host and size and host + size > length and (host >= length or length % SECTOR):
            walk.need_data((first + number) * cluster, host, size)


def _last_inflates(walk: _Walk, header: Qcow2Header) -> None:
    """Where the file ends within its last compressed cluster: only whole sectors are counted, so that alone tells.

    With zeros for the rest, as QEMU reads it, a cluster may inflate to its full size and be another.
    """
    host, size, guest = walk.last
    if host + size <= walk.length:
        return
    packed = b"".join(piece for _, piece in walk.run("a compressed cluster", host, walk.length - host))
    try:
        if header.compression_type:
            from backports import zstd

            plain = zstd.ZstdDecompressor().decompress(packed, header.cluster_size)
        else:
            plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, header.cluster_size)
    except Exception:  # noqa: BLE001 - each decoder has a class of its own; what is damaged is the reader's to refuse
        return
    if len(plain) < header.cluster_size:
        walk.refuse(_at(guest), host, host + size)


# --- words ----------------------------------------------------------------------------------------------------


def _at(guest: int) -> str:
    return f"disk offset {guest:#x}"


def _big(kind: str, table: bytes) -> array[int]:
    return _entries(kind, table, swap=sys.byteorder == "little")


def _little(kind: str, table: bytes) -> array[int]:
    return _entries(kind, table, swap=sys.byteorder == "big")


def _entries(kind: str, table: bytes, *, swap: bool) -> array[int]:
    values = array(kind)
    values.frombytes(table)
    if swap:
        values.byteswap()
    return values
