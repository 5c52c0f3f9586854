"""Builder of the map of a sparse VMDK from its grain directory and grain tables.

Follows VMware's Virtual Disk Format 5.0, "Hosted Sparse Extent Metadata" and "Stream-Optimized Compressed Sparse
Extents", and where that is silent, QEMU's driver: the primary directory decides, the redundant one is not read.
"""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Final

from cdi.image.block_map import (
    TABLE_LIMIT,
    BlockMap,
    Encoding,
    MapBuilder,
    MapTooLarge,
    Table,
    TableRange,
    table_entries,
)
from cdi.image.formats.vmdk import AT_END, GRAIN_MARKER, Header
from cdi.image.sizes import SECTOR, round_up

_DIRECTORY_CHUNK: Final = 64 << 10
"""Size in bytes of the parts in which the directory is read; each entry becomes a tuple."""
_FOOTER: Final = -1
_LAST_MARKER: Final = -2
_DIRECTORY: Final = -3
"""Key of the directory's first chunk; that of each further chunk is one less. A grain table's key is its index."""


def largest_grain(header: Header) -> int:
    """Return the maximum bytes of a compressed grain with its marker, which is also QEMU's."""
    return 2 * header.grain * SECTOR


class VmdkMapBuilder(MapBuilder):
    """Builder for one image; `length` is the file's size in bytes, or None for a stream, which cannot have a footer."""

    def __init__(self, header: Header, length: int | None) -> None:
        grain = header.grain * SECTOR
        super().__init__(BlockMap("vmdk", header.capacity * SECTOR, length, grain if header.compressed else 0))
        self.header = header
        self._grains = -(-header.capacity // header.grain)
        self._tables: list[TableRange] = []
        """Grain tables that are not requested yet."""
        self._chunks = 0
        """Number of chunks of the directory that are still to be fed."""
        self._expected = 0
        """Number of requested grain tables that are still to be fed."""
        self._last = 0
        """Sector of the grain that is stored last."""

    def begin(self) -> list[TableRange]:
        """Return the footer, if the image has one, or the grain directory."""
        if self.header.directory_offset == AT_END:
            if self.map.length is None:
                raise self.map.error("the place of the grain directory is known only at the end of the file")
            return [TableRange(round_up(self.map.length, SECTOR) - 2 * SECTOR, SECTOR, _FOOTER)]
        return self._directory(self.header)

    def add_table(self, table: TableRange, data: Table) -> list[TableRange]:
        if table.key == _FOOTER:
            footer = Header.parse(bytes(data))
            if footer is None or footer.geometry != self.header.geometry:
                raise self.map.error("footer and header contradict each other")
            return self._directory(footer)
        if table.key == _LAST_MARKER:
            self._check_last(table.offset, data)
            return []
        if table.key > _DIRECTORY:
            self._expected -= 1
            self._add_grains(table.key, data)
            return self._last_marker() if not self._expected and not self._chunks else []
        self._chunks -= 1
        first = (_DIRECTORY - table.key) * (_DIRECTORY_CHUNK // 4)
        for index, place in enumerate(table_entries("I", data, "little"), first):
            if place:
                self._tables.append(TableRange(place * SECTOR, self._table_size(index), index))
        if self.map.keep_extents:
            if len(self._tables) > TABLE_LIMIT:
                raise MapTooLarge
            if self._chunks:
                return []
        tables, self._tables = self._tables, []
        self.map.check_tables("grain table", tables)
        self._expected += len(tables)
        return tables or self._last_marker()

    def finish(self) -> None:
        """Sort the map and give compressed grains their size, which ends at the next one at the latest."""
        image = self.map
        image.sort_by_host_offset()
        if not self.header.compressed:
            image.require_disjoint()
            return
        limit = largest_grain(self.header)
        end = image.length if image.length is not None else 1 << 62
        for position, (host, following) in enumerate(pairwise(chain(image.hosts, (end,)))):
            if host == following:
                guests = image.guests[position : position + 2]
                raise image.error(
                    f"disk offsets {guests[0]:#x} and {guests[-1]:#x} are stored in the same place, at {host:#x}"
                )
            image.sizes[position] = min(limit, following - host)

    def _directory(self, placed: Header) -> list[TableRange]:
        """Return the directory of `placed`, the header or the footer, in chunks."""
        start, size = placed.directory_offset * SECTOR, 4 * -(-self._grains // placed.table_entries)
        if self.map.length is not None and start + size > self.map.length:
            self.map.refuse("the grain directory", start, start + size)
        chunks = [
            TableRange(start + at, min(_DIRECTORY_CHUNK, size - at), _DIRECTORY - number)
            for number, at in enumerate(range(0, size, _DIRECTORY_CHUNK))
        ]
        self._chunks = len(chunks)
        return chunks

    def _table_size(self, index: int) -> int:
        entries = self.header.table_entries
        return 4 * min(entries, self._grains - index * entries)

    def _add_grains(self, index: int, table: Table) -> None:
        image, header = self.map, self.header
        grain = header.grain * SECTOR
        first = index * header.table_entries
        limit = largest_grain(header)
        lowest = 2 if header.zero_grains else 1
        places = table_entries("I", table, "little")
        furthest = max(places)
        if furthest >= lowest:
            self._last = max(self._last, furthest)
        if not image.keep_extents and image.length is not None and furthest * SECTOR + limit <= image.length:
            return
        for number, place in enumerate(places, first):
            if place < lowest:
                continue
            host, guest = place * SECTOR, number * grain
            if header.compressed:
                image.require_within(host, GRAIN_MARKER.size + 1 if header.markers else 1, guest)
                image.append(host, limit, guest, Encoding.GRAIN)
            else:
                image.add_stored(host, grain, guest)

    def _last_marker(self) -> list[TableRange]:
        """Return the marker of the grain that is stored last: all others end before it."""
        if not self.header.markers or not self.header.compressed or self.map.length is None or not self._last:
            return []
        return [TableRange(self._last * SECTOR, GRAIN_MARKER.size, _LAST_MARKER)]

    def _check_last(self, host: int, marker: Table) -> None:
        sector, size = GRAIN_MARKER.unpack(marker)
        self.map.require_within(host, GRAIN_MARKER.size + size, sector * SECTOR)
