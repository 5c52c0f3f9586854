"""Builders of the maps of VDI, VHD and VHDX, which have one block allocation table each.

The images have passed inspection (`cdi.image.formats`), so the headers are only read for the places of the tables.
"""

from __future__ import annotations

import struct
from typing import Final, assert_never

from cdi.api.errors import FormatUnsupported, ImageError
from cdi.image.block_map import (
    BlockMap,
    Encoding,
    MapBuilder,
    Table,
    TableRange,
    table_entries,
)
from cdi.image.formats import vhdx, vpc
from cdi.image.info import ImageInfo
from cdi.image.sizes import MEBI, SECTOR, round_up

_HEADER: Final = -1
_DYNAMIC_HEADER: Final = -2
"""Keys of headers; the key of a chunk of the block allocation table is its offset in the table."""

_VDI_MAP_OFFSET: Final = 340
_VDI_DISCARDED: Final = 0xFFFF_FFFE
"""Discarded blocks, and the one value above it, blocks never allocated, read as zeros."""

_VHD_UNUSED: Final = 0xFFFF_FFFF
_VHD_TABLE_OFFSET: Final = 16
"""Offset of the table's offset in the dynamic header."""

_VHDX_REGIONS_SIZE: Final = 64 << 10
_VHDX_PRESENT, _VHDX_PARTIAL = 6, 7
"""States of a payload block; the lower ones read as zeros."""
_VHDX_OFFSET: Final = 0xFFFF_FFFF_FFF0_0000
_VHDX_SECTORS: Final = 1 << 23
"""Sectors of the disk per sector bitmap, whose entry is interleaved with those of the blocks."""


class _BatMapBuilder(MapBuilder):
    """Builder for a format with a block allocation table; no two blocks may share bytes of the file."""

    def __init__(self, extents: BlockMap, block_size: int) -> None:
        super().__init__(extents)
        self._block = block_size
        self._blocks = -(-extents.disk_size // block_size)

    def changed(self) -> ImageError:
        """Return the error for headers that no longer match the inspection."""
        return self.map.error("the headers changed since the inspection")

    def finish(self) -> None:
        super().finish()
        self.map.require_disjoint()


class VdiMapBuilder(_BatMapBuilder):
    """Builder for a VDI (VirtualBox' VDICore.h): block numbers, relative to the beginning of the data."""

    def __init__(self, disk_size: int, length: int | None) -> None:
        super().__init__(BlockMap("vdi", disk_size, length), MEBI)
        self._origin = 0

    def begin(self) -> list[TableRange]:
        return [TableRange(_VDI_MAP_OFFSET, 8, _HEADER)]

    def add_table(self, table: TableRange, data: Table) -> list[TableRange]:
        if table.key == _HEADER:
            offset, self._origin = struct.unpack("<II", data)
            return self.map.request_table("the block map", offset, 4 * self._blocks)
        for index, entry in enumerate(table_entries("I", data, "little"), table.key // 4):
            if entry < _VDI_DISCARDED:
                self.map.add_stored(self._origin + entry * MEBI, MEBI, index * MEBI)
        return []


class VhdMapBuilder(_BatMapBuilder):
    """Builder for a dynamic VHD (VHD 1.0, "Block Allocation Table and Data Blocks") that does not need QEMU.

    An entry is the sector number of a block, which begins with a bitmap of the sectors that hold data.
    """

    def __init__(self, disk_size: int, block_size: int, length: int | None) -> None:
        super().__init__(BlockMap("vhd", disk_size, length, block_size), block_size)
        self._unit = round_up(-(-block_size // (SECTOR * 8)), SECTOR) + block_size
        """Bytes of a bitmap and its block."""

    def begin(self) -> list[TableRange]:
        return [TableRange(0, vpc.FOOTER, _HEADER)]

    def add_table(self, table: TableRange, data: Table) -> list[TableRange]:
        image = self.map
        if table.key == _HEADER:
            footer = vpc.parse_footer(bytes(data))
            if footer is None:
                raise self.changed()
            image.request_table("the dynamic header", footer.data_offset, 1024)
            return [TableRange(footer.data_offset + _VHD_TABLE_OFFSET, 8, _DYNAMIC_HEADER)]
        if table.key == _DYNAMIC_HEADER:
            return image.request_table("the block map", int.from_bytes(data, "big"), 4 * self._blocks)
        for index, entry in enumerate(table_entries("I", data, "big"), table.key // 4):
            if entry != _VHD_UNUSED:
                # The last block is complete too, and followed by a footer; QEMU rejects anything else.
                image.require_within(entry * SECTOR, self._unit, index * self._block)
                image.append(entry * SECTOR, self._unit, index * self._block, Encoding.SECTOR_BITMAP)
        return []


class VhdxMapBuilder(_BatMapBuilder):
    """Builder for a VHDX without a parent ([MS-VHDX] 2.5, "BAT"), whose sector bitmaps are unused."""

    def __init__(self, disk_size: int, block_size: int, length: int | None) -> None:
        super().__init__(BlockMap("vhdx", disk_size, length), block_size)
        self._ratio = _VHDX_SECTORS * SECTOR // block_size
        """Number of blocks before each entry of a sector bitmap."""

    def begin(self) -> list[TableRange]:
        return [TableRange(vhdx.REGION_TABLE, _VHDX_REGIONS_SIZE, _HEADER)]

    def add_table(self, table: TableRange, data: Table) -> list[TableRange]:
        if table.key == _HEADER:
            offset = vhdx.block_table(bytes(data))
            if offset is None:
                raise self.changed()
            entries = self._blocks + max(self._blocks - 1, 0) // self._ratio
            return self.map.request_table("the block table", offset, 8 * entries)
        for index, entry in enumerate(table_entries("Q", data, "little"), table.key // 8):
            if entry & 7 < _VHDX_PRESENT:
                continue
            chunk, number = divmod(index, self._ratio + 1)
            if number == self._ratio:
                continue
            guest = (chunk * self._ratio + number) * self._block
            if entry & 7 == _VHDX_PARTIAL:
                raise self.map.error(
                    f"the block at disk offset {guest:#x} is only partially present, as in a differencing image",
                    FormatUnsupported,
                )
            self.map.add_stored(entry & _VHDX_OFFSET, self._block, guest)
        return []

    def finish(self) -> None:
        super().finish()
        self.map.require_disjoint(MEBI)


def bat_map_builder(image: ImageInfo, length: int | None) -> MapBuilder | None:
    """Return the builder for an inspected image of `length` bytes, or None if it has no block allocation table."""
    size, block = image.virtual_size, image.cluster_size
    if size is None or block is None:
        return None
    match image.format:
        case "vdi":
            return VdiMapBuilder(size, length)
        case "vpc":
            return VhdMapBuilder(size, block, length)
        case "vhdx":
            return VhdxMapBuilder(size, block, length)
        case "raw" | "qcow2" | "vmdk":
            return None
    assert_never(image.format)
