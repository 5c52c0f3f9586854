"""Map of a disk image: the runs of its disk that the file holds, sorted by offset in the file.

Performs no I/O. A `MapBuilder` of the image's format requests tables and is fed with their bytes, in any order:

    pending = builder.begin()
    while pending:
        table = pending.pop()
        more, extents = builder.feed(table, read(table.offset, table.size))
        pending += more
    builder.finish()

With the complete map the file can be read once, sequentially, and every extent written to its place on the disk.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final, Literal, NamedTuple, NoReturn

from cdi.api.errors import ContentTruncated, ImageCorrupt, ImageError
from cdi.image.checks import Check
from cdi.image.sizes import MAX_OFFSET, SECTOR, round_up

NAME: Final = "data within the file"
"""Name of the check that every map makes."""

RUN_LIMIT: Final = 1 << 20
"""Stored runs are merged up to this many bytes and cut if they are longer, so that an extent fits into one buffer."""

EXTENT_LIMIT: Final = 1 << 20
"""Maximum number of extents in a map (about 25 MB); larger images are converted by QEMU."""

TABLE_LIMIT: Final = 1 << 17
"""Maximum number of tables that another table refers to: 64 TiB of a qcow2 disk with clusters of 64 KiB."""

TABLE_CHUNK: Final = 1 << 20
"""Maximum size in bytes in which a builder should request a table that can be cut."""

Table = bytes | bytearray | memoryview


TOO_LARGE: Final = "it has more extents than can be kept in memory"
"""Reason why QEMU reads an image for which `MapTooLarge` was raised."""


class MapTooLarge(Exception):
    """The image has more extents or tables than a map may hold."""


class Encoding(Enum):
    """How the bytes of an extent in the file become bytes of the disk."""

    STORED = 0
    DEFLATE = 1
    """Raw deflate stream without a header, in whole sectors (qcow2)."""
    ZSTD = 2
    GRAIN = 3
    """Marker, and the zlib stream whose length it states (vmdk)."""
    SECTOR_BITMAP = 4
    """Bitmap of the sectors that hold data, padded to a sector, and then all sectors (VHD)."""


_ENCODINGS: Final = tuple(Encoding)


@dataclass(frozen=True, slots=True)
class Extent:
    """Run of the disk that is stored contiguously in the file.

    `host` and `size` are its range in the file, `guest` and `length` its range on the disk, all in bytes. A stored
    extent has ``size == length``. A compressed one is a single block of the format; if the format counts its `size` in
    whole sectors, it may overlap the next extent or reach past the end of the file.
    """

    host: int
    size: int
    guest: int
    length: int
    encoding: Encoding


class TableRange(NamedTuple):
    """Table that a builder requests; `key` is the builder's own. Offset and size are in bytes."""

    offset: int
    size: int
    key: int


class BlockMap:
    """Extents of a disk, in compact arrays; a builder adds them.

    Args:
        image_format: Name of the format, for errors.
        disk_size: Size of the disk in bytes.
        length: Size of the file in bytes; None for a stream, where offsets cannot be compared to it.
        block_size: Bytes of the disk that one encoded extent holds; 0 if the format encodes none.
        short_end: Whether writers may end the file at a sector boundary within the last stored extent.
    """

    def __init__(
        self, image_format: str, disk_size: int, length: int | None, block_size: int = 0, *, short_end: bool = False
    ) -> None:
        self.format = image_format
        self.disk_size = disk_size
        self.length = length
        self.block_size = block_size
        self.hosts = array("Q")
        self.sizes = array("Q")
        self.guests = array("Q")
        self.encodings = bytearray()
        self.short_end = short_end
        self.keep_extents = True
        """Whether extents are kept; without, a builder only checks the tables, and their number is not limited."""
        self._table_bytes = 0
        self._table_start = 0
        """Position of the first extent of the current table; runs of different tables are not merged."""

    def __len__(self) -> int:
        return len(self.hosts)

    # --- building -----------------------------------------------------------------------------------------------

    def begin_table(self) -> int:
        """Return the position of the next extent; extents before it no longer change."""
        self._table_start = len(self.hosts)
        return self._table_start

    def add_stored(self, host: int, size: int, guest: int) -> None:
        """Add a run that is stored as it is, without what lies past the end of the disk.

        Raises:
            ImageError: the run lies outside the file.
            MapTooLarge: there are more than `EXTENT_LIMIT` extents.
        """
        size = min(size, self.disk_size - guest)
        self.require_within(host, size, guest)
        if not self.keep_extents:
            return
        hosts, sizes = self.hosts, self.sizes
        if len(hosts) > self._table_start:
            run = sizes[-1]
            if (
                hosts[-1] + run == host
                and self.guests[-1] + run == guest
                and run + size <= RUN_LIMIT
                and not self.encodings[-1]
            ):
                sizes[-1] = run + size
                return
        for start in range(0, size, RUN_LIMIT):
            self.append(host + start, min(RUN_LIMIT, size - start), guest + start, Encoding.STORED)
            if len(hosts) > EXTENT_LIMIT:
                raise MapTooLarge

    def append(self, host: int, size: int, guest: int, encoding: Encoding) -> None:
        """Add an extent that the caller has checked; an encoded one is one block of the disk."""
        if not self.keep_extents:
            return
        self.hosts.append(host)
        self.sizes.append(size)
        self.guests.append(guest)
        self.encodings.append(encoding.value)

    def require_within(self, host: int, needed: int, guest: int) -> None:
        """Raise `ContentTruncated` or `ImageCorrupt` if the file does not contain the data of disk offset `guest`.

        If the format allows a short end, QEMU reads zeros past it. A file that ends within a sector was truncated.
        """
        length = self.length
        if host + needed <= (MAX_OFFSET if length is None else length):
            return
        if length is None:
            raise self.error(f"disk offset {guest:#x} is stored at {host:#x}, beyond the end of any file")
        if self.short_end and host < length and length % SECTOR == 0:
            return
        self.refuse(f"disk offset {guest:#x}", host, host + needed)

    def refuse(self, what: str, start: int, end: int) -> NoReturn:
        """Raise the error for `what`, which the file should hold from `start` to `end`."""
        said = f"{what} is stored at bytes {start} to {end} of a file of {self.length} bytes"
        # A file holds every block once, and the tables; no writer needs twice that, plus 1 GiB for small disks.
        if start > 2 * self.disk_size + (1 << 30):
            raise self.error(said)
        raise self.error(f"{said}: the file is truncated", ContentTruncated)

    def error(self, what: str, kind: type[ImageError] = ImageCorrupt) -> ImageError:
        """Return an error that names the format, with the failed check."""
        error = kind(what, where=self.format)
        error.checks = (Check(name=NAME, passed=False, detail=what),)
        return error

    def request_table(self, what: str, offset: int, size: int) -> list[TableRange]:
        """Return the chunks of a contiguous table, with their offset in it as key; raise if the file lacks it."""
        if self.length is not None and offset + size > self.length:
            self.refuse(what, offset, offset + size)
        return [TableRange(offset + at, min(TABLE_CHUNK, size - at), at) for at in range(0, size, TABLE_CHUNK)]

    def check_tables(self, what: str, tables: list[TableRange]) -> None:
        """Check the tables that another table refers to; they are sorted by offset.

        Shared or overlapping tables would let a small file describe an unbounded amount of data.

        If extents are not kept, any number of tables may be checked, part by part.

        Raises:
            ImageError: a table lies outside the file, or overlaps another.
            MapTooLarge: there are more than `TABLE_LIMIT`.
        """
        if self.keep_extents:
            if len(tables) > TABLE_LIMIT:
                raise MapTooLarge
        elif self.length is not None:
            self._table_bytes += sum(max(size, SECTOR) for _, size, _ in tables)
            if self._table_bytes > round_up(self.length, SECTOR):
                raise self.error(f"its {what}s overlap: together they exceed the size of the file")
        tables.sort()
        end, before = 0, -1
        for offset, size, key in tables:
            if self.length is not None and offset + size > self.length:
                self.refuse(f"{what} {key}", offset, offset + size)
            if offset == before:
                raise self.error(f"{what} {key} at {offset:#x} is used twice")
            if offset < end:
                raise self.error(f"{what} {key} at {offset:#x} overlaps the {what} at {before:#x}")
            end, before = offset + size, offset

    def sort_by_host_offset(self) -> None:
        """Sort the extents by offset in the file."""
        hosts = self.hosts
        if all(a <= b for a, b in pairwise(hosts)):
            return
        order = sorted(range(len(hosts)), key=hosts.__getitem__)
        self.hosts = array("Q", map(hosts.__getitem__, order))
        self.sizes = array("Q", map(self.sizes.__getitem__, order))
        self.guests = array("Q", map(self.guests.__getitem__, order))
        self.encodings = bytearray(map(self.encodings.__getitem__, order))

    def require_disjoint(self, start: int = 0) -> None:
        """Raise `ImageCorrupt` if extents of the sorted map share bytes of the file, or begin before `start`."""
        if self.hosts and self.hosts[0] < start:
            raise self.error(f"disk offset {self.guests[0]:#x} is stored at {self.hosts[0]:#x}, within the headers")
        end = 0
        for position, (host, size) in enumerate(zip(self.hosts, self.sizes, strict=True)):
            if host < end:
                first, second = self.guests[position - 1], self.guests[position]
                raise self.error(f"disk offsets {first:#x} and {second:#x} are stored in the same place, at {host:#x}")
            end = host + size

    # --- reading ------------------------------------------------------------------------------------------------

    def extent(self, position: int) -> Extent:
        kind = self.encodings[position]
        guest = self.guests[position]
        size = self.sizes[position]
        length = min(self.block_size, self.disk_size - guest) if kind else size
        return Extent(self.hosts[position], size, guest, length, _ENCODINGS[kind])

    def data_bytes(self) -> int:
        """Return the number of bytes of the disk for which the file holds data."""
        stored = sum(size for size, kind in zip(self.sizes, self.encodings, strict=True) if kind == 0)
        encoded = len(self) - self.encodings.count(0)
        return min(self.disk_size, encoded * self.block_size + stored)

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield the unallocated runs of the disk, which read as zeros, as (offset, length) in ascending order."""
        position = 0
        for index in sorted(range(len(self.guests)), key=self.guests.__getitem__):
            extent = self.extent(index)
            if extent.guest > position:
                yield position, extent.guest - position
            position = max(position, extent.guest + extent.length)
        if position < self.disk_size:
            yield position, self.disk_size - position


class MapBuilder(ABC):
    """Builder of the map of one image, fed with its tables in any order.

    A table is requested once its place is known. A stream feeds each table when it arrives, so extents that precede
    other tables are known early.
    """

    def __init__(self, extents: BlockMap) -> None:
        self.map = extents

    @abstractmethod
    def begin(self) -> list[TableRange]:
        """Return the first tables to read."""

    @abstractmethod
    def add_table(self, table: TableRange, data: Table) -> list[TableRange]:
        """Add the extents in a table's bytes to the map, and return the further tables that it refers to."""

    def feed(self, table: TableRange, data: Table) -> tuple[list[TableRange], range]:
        """Process the bytes of a requested table.

        Returns:
            The tables that it refers to, and the positions of its extents, which are valid until `finish`.

        Raises:
            ImageError: the table contradicts the file, the disk or another table.
            MapTooLarge: there are more extents or tables than a map may hold.
        """
        first = self.map.begin_table()
        more = self.add_table(table, data)
        if len(self.map) > EXTENT_LIMIT:
            raise MapTooLarge
        return more, range(first, len(self.map))

    def finish(self) -> None:
        """Sort the map after the last table, and check it as a whole."""
        self.map.sort_by_host_offset()


@dataclass(frozen=True, slots=True)
class FileChunk:
    """Range of the file that is fetched with one request, and the extents that begin in it.

    The ranges ``[start, stop)`` of all pieces are consecutive, except for gaps that were left out on request. ``fetch``
    is the end of the bytes that the extents need: slightly past `stop` if the last one shares a sector with the next.
    """

    start: int
    stop: int
    fetch: int
    first: int
    last: int


def pieces(
    image: BlockMap, length: int, *, begin: int, size: int, whole: bool, gap: int = 1 << 18
) -> Iterator[FileChunk]:
    """Split the file of a sorted map into pieces of about `size` bytes without splitting an extent.

    `begin` is the watermark of an earlier attempt (the `stop` of a piece). With `whole` the pieces cover every byte of
    the file, as a digest requires; otherwise gaps of more than `gap` bytes without data are left out. All extents of
    later pieces begin at or after the `stop` of a piece, which makes `stop` a watermark.
    """
    hosts, sizes, count = image.hosts, image.sizes, len(image)
    position, start = bisect_left(hosts, begin), begin
    while start < length if whole else position < count:
        if not whole and hosts[position] - start >= min(gap, size):
            start = hosts[position]
        limit = start + size
        last, needed = position, start
        while last < count and hosts[last] < limit:
            if not whole and hosts[last] - needed > gap:
                break
            needed = max(needed, hosts[last] + sizes[last])
            last += 1
        stop = max(limit, needed) if whole else needed
        if last < count:
            stop = min(stop, hosts[last])
        stop = min(stop, length)
        yield FileChunk(start, stop, min(length, max(needed, stop)), position, last)
        position, start = last, stop


def table_entries(kind: Literal["I", "Q"], table: Table, order: Literal["little", "big"]) -> array[int]:
    """Return the unsigned integers in a table; `kind` is their type code, `order` their byte order."""
    values = array(kind)
    values.frombytes(table)
    if order != sys.byteorder:
        values.byteswap()
    return values


def within(length: int) -> Check:
    """Return the passed check for a file of `length` bytes."""
    return Check(
        name=NAME, passed=True, detail=f"all data that the tables refer to is within the file's {length} bytes"
    )
