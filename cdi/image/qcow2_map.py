"""Builder of the map of a qcow2 image from its L1 and L2 tables.

Follows the QCOW2 specification (QEMU's docs/interop/qcow2.txt), versions 2 and 3, "L1/L2 table entries" and "Extended
L2 Entries".
"""

from __future__ import annotations

from typing import Final

from cdi.image.block_map import (
    RUN_LIMIT,
    TABLE_LIMIT,
    BlockMap,
    Encoding,
    MapBuilder,
    MapTooLarge,
    Table,
    TableRange,
    table_entries,
)
from cdi.image.formats.qcow2 import Qcow2Header
from cdi.image.sizes import SECTOR

_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED: Final = 1 << 62
_ZERO: Final = 1
_SUBCLUSTERS: Final = 32
_ALLOCATED: Final = (1 << _SUBCLUSTERS) - 1
"""Half of an extended entry's bitmap: subclusters that are allocated. The other half are those that read as zeros."""
_L1: Final = -1
"""Key of the L1 table; an L2 table's key is its index."""


class Qcow2MapBuilder(MapBuilder):
    """Builder for one qcow2 image; `length` is the file's size in bytes, or None for a stream."""

    def __init__(self, header: Qcow2Header, length: int | None) -> None:
        super().__init__(BlockMap("qcow2", header.virtual_size, length, header.cluster_size, short_end=True))
        self.header = header
        self.l2_coverage = header.cluster_size * header.l2_entries
        """Bytes of the disk that one L2 table maps."""
        self._encoding = Encoding.ZSTD if header.compression_type == 1 else Encoding.DEFLATE
        self._csize_shift = 62 - (header.cluster_bits - 8)
        self._csize_mask = (1 << (header.cluster_bits - 8)) - 1

    def begin(self) -> list[TableRange]:
        """Return the part of the L1 table that the disk uses."""
        header = self.header
        if header.l1_needed > header.l1_entries:
            raise self.map.error(
                f"the L1 table has {header.l1_entries} entries, but a disk of {header.virtual_size} bytes "
                f"needs {header.l1_needed}"
            )
        return [TableRange(header.l1_offset, header.l1_needed * 8, _L1)]

    def add_table(self, table: TableRange, data: Table) -> list[TableRange]:
        if table.key == _L1:
            return self._l2_tables(data)
        if self.header.extended_l2:
            self._add_extended_l2(table.key, data)
        else:
            self._add_l2(table.key, data)
        return []

    def _l2_tables(self, l1: Table) -> list[TableRange]:
        cluster = self.header.cluster_size
        found = []
        for index, entry in enumerate(table_entries("Q", l1, "big")):
            offset = entry & _OFFSET
            if offset == 0:
                continue
            if offset % cluster:
                raise self.map.error(f"L2 table {index} at {offset:#x} is not aligned to a cluster")
            found.append(TableRange(offset, cluster, index))
            if len(found) > TABLE_LIMIT:
                raise MapTooLarge
        self.map.check_tables("L2 table", found)
        return found

    def _add_l2(self, index: int, table: Table) -> None:
        image = self.map
        base = index * self.l2_coverage
        disk = image.disk_size
        cluster = self.header.cluster_size
        encoding = self._encoding.value
        run_host = run_guest = run_size = 0
        hosts, sizes, guests, encodings = image.hosts, image.sizes, image.guests, image.encodings
        limit = 1 << 64 if image.length is None else image.length - cluster
        if bytes(table).count(0) == len(table):
            return
        # A million clusters pass through this loop, so it appends to the arrays itself.
        for number, entry in enumerate(table_entries("Q", table, "big")):
            if entry == 0:
                continue
            guest = base + number * cluster
            if guest >= disk:
                break
            if entry & _COMPRESSED:
                host = entry & ((1 << self._csize_shift) - 1)
                if host > limit:
                    image.require_within(host, 1, guest)
                hosts.append(host)
                sizes.append((((entry >> self._csize_shift) & self._csize_mask) + 1) * 512 - (host & 511))
                guests.append(guest)
                encodings.append(encoding)
                continue
            if entry & _ZERO and self.header.version >= 3:
                continue
            host = entry & _OFFSET
            if host == 0:
                continue
            if host % cluster:
                raise image.error(f"the data cluster at {host:#x} (disk offset {guest:#x}) is not aligned")
            if host > limit:
                image.require_within(host, min(cluster, disk - guest), guest)
            if run_size and host == run_host + run_size and guest == run_guest + run_size and run_size < RUN_LIMIT:
                run_size += cluster
                continue
            if run_size:
                image.append(run_host, run_size, run_guest, Encoding.STORED)
            run_host, run_guest, run_size = host, guest, cluster
        if run_size:
            image.append(run_host, min(run_size, disk - run_guest), run_guest, Encoding.STORED)

    def _add_extended_l2(self, index: int, table: Table) -> None:
        image, cluster = self.map, self.header.cluster_size
        words = table_entries("Q", table, "big")
        for number, (entry, bitmap) in enumerate(zip(words[::2], words[1::2], strict=True)):
            guest = index * self.l2_coverage + number * cluster
            if guest >= image.disk_size:
                break
            if entry & _COMPRESSED:
                # Without subclusters; its bitmap is not used.
                host, size = self._compressed(entry)
                image.require_within(host, 1, guest)
                image.append(host, size, guest, self._encoding)
            elif bitmap & _ALLOCATED:
                self._add_subclusters(entry & _OFFSET, bitmap, guest)

    def _compressed(self, entry: int) -> tuple[int, int]:
        """Return the place and the maximum size of a compressed cluster, which is counted in whole sectors."""
        host = entry & ((1 << self._csize_shift) - 1)
        return host, (((entry >> self._csize_shift) & self._csize_mask) + 1) * SECTOR - host % SECTOR

    def _add_subclusters(self, host: int, bitmap: int, guest: int) -> None:
        image, size = self.map, self.header.cluster_size // _SUBCLUSTERS
        allocated = bitmap & _ALLOCATED
        if allocated & bitmap >> _SUBCLUSTERS:
            raise image.error(f"subclusters of disk offset {guest:#x} are both allocated and zero")
        if host == 0:
            raise image.error(f"subclusters of disk offset {guest:#x} are allocated without a cluster")
        if host % self.header.cluster_size:
            raise image.error(f"the data cluster at {host:#x} (disk offset {guest:#x}) is not aligned")
        first = 0
        while allocated:
            gap = (allocated & -allocated).bit_length() - 1
            first, allocated = first + gap, allocated >> gap
            if guest + first * size >= image.disk_size:
                break
            run = (~allocated & allocated + 1).bit_length() - 1
            image.add_stored(host + first * size, run * size, guest + first * size)
            first, allocated = first + run, allocated >> run
