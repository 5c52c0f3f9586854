"""Map of a qcow2 image: the extents that its L1 and L2 tables describe, sorted by offset in the file.

Performs no I/O: the caller reads the tables that the map requests. With the complete map the file can be read once,
sequentially, and every cluster written to its place on the disk.

Follows the QCOW2 specification (QEMU's docs/interop/qcow2.txt), versions 2 and 3, "L1/L2 table entries". Extended L2
entries are not supported (`cdi.image.inspect` sends such images to QEMU).
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from cdi.api.errors import ImageCorrupt
from cdi.image.formats.qcow2 import Qcow2Header

_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1

RUN_LIMIT = 1 << 20
"""Adjacent clusters are merged up to this many bytes, so that an extent fits into one buffer."""

EXTENT_LIMIT = 1 << 20
"""Maximum number of extents in a map (about 25 MB); larger images are converted by QEMU."""


TABLE_LIMIT = 1 << 17
"""Maximum number of L2 tables: 64 TiB with 64 KiB clusters."""


class MapTooLarge(Exception):
    """The image has more extents or tables than a map may hold."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Run of the disk that is stored contiguously in the file.

    `host` and `size` are its range in the file, `guest` and `length` its range on the disk, all in bytes. A plain
    extent has ``size >= length`` only at the end of the disk. A compressed one is a single cluster, and `size` counts
    whole sectors, so it may overlap the next cluster or reach past the end of the file.
    """

    host: int
    size: int
    guest: int
    length: int
    compressed: bool


class Qcow2Map:
    """Map that is built table by table; `sort_by_host_offset` sorts it by offset in the file.

    `length` is the file's size in bytes, or None for a stream, where offsets cannot be checked against it.
    """

    def __init__(self, header: Qcow2Header, length: int | None) -> None:
        self.header = header
        self.length = length
        self.cluster_size = 1 << header.cluster_bits
        self.table_entries = self.cluster_size // 8
        self.l2_coverage = self.cluster_size * self.table_entries
        """Bytes of the disk that one L2 table maps."""
        self.hosts = array("Q")
        self.sizes = array("Q")
        self.guests = array("Q")
        self.kinds = bytearray()
        self._csize_shift = 62 - (header.cluster_bits - 8)
        self._csize_mask = (1 << (header.cluster_bits - 8)) - 1

    def __len__(self) -> int:
        return len(self.hosts)

    @property
    def l1_range(self) -> tuple[int, int]:
        """Offset and length in bytes of the part of the L1 table that the disk uses."""
        needed = -(-self.header.virtual_size // self.l2_coverage)
        if needed > self.header.l1_entries:
            raise ImageCorrupt(
                f"the L1 table has {self.header.l1_entries} entries, but a disk of {self.header.virtual_size} bytes "
                f"needs {needed}"
            )
        return self.header.l1_offset, needed * 8

    def tables(self, l1: bytes | bytearray | memoryview) -> list[tuple[int, int]]:
        """Return the allocated L2 tables as (index, offset in the file), by index.

        Raises:
            ImageCorrupt: a table is misaligned, lies outside the file or is used twice.
            MapTooLarge: there are more than `TABLE_LIMIT`.
        """
        found = []
        seen = set()
        for index, entry in enumerate(_entries(l1)):
            offset = entry & _OFFSET
            if offset == 0:
                continue
            if offset % self.cluster_size:
                raise ImageCorrupt(f"L2 table {index} at {offset:#x} is not aligned to a cluster")
            if self.length is not None and offset + self.cluster_size > self.length:
                raise ImageCorrupt(f"L2 table {index} at {offset:#x} lies beyond the file's {self.length} bytes")
            # Shared tables would let a small file describe an unbounded amount of data.
            if offset in seen:
                raise ImageCorrupt(f"L2 table {index} at {offset:#x} is used twice")
            seen.add(offset)
            found.append((index, offset))
            if len(found) > TABLE_LIMIT:
                raise MapTooLarge
        return found

    def add_table(self, index: int, table: bytes | bytearray | memoryview) -> range:
        """Add the extents of one L2 table and return their positions, valid until `sort_by_host_offset` is called.

        Raises:
            ImageCorrupt: an extent is misaligned or lies outside the file.
            MapTooLarge: there are more than `EXTENT_LIMIT` extents.
        """
        first = len(self.hosts)
        base = index * self.l2_coverage
        disk = self.header.virtual_size
        cluster = self.cluster_size
        run_host = run_guest = run_size = 0
        hosts, sizes, guests, kinds = self.hosts, self.sizes, self.guests, self.kinds
        if bytes(table).count(0) == len(table):
            return range(first, first)
        for number, entry in enumerate(_entries(table)):
            if entry == 0:
                continue
            guest = base + number * cluster
            if guest >= disk:
                break
            if entry & _COMPRESSED:
                host = entry & ((1 << self._csize_shift) - 1)
                size = (((entry >> self._csize_shift) & self._csize_mask) + 1) * 512 - (host & 511)
                self._check(host, 1, guest)
                hosts.append(host)
                sizes.append(size)
                guests.append(guest)
                kinds.append(1)
                continue
            if entry & _ZERO and self.header.version >= 3:
                continue
            host = entry & _OFFSET
            if host == 0:
                continue
            if host % cluster:
                raise ImageCorrupt(f"the data cluster at {host:#x} (disk offset {guest:#x}) is not aligned")
            self._check(host, min(cluster, disk - guest), guest)
            if run_size and host == run_host + run_size and guest == run_guest + run_size and run_size < RUN_LIMIT:
                run_size += cluster
                continue
            if run_size:
                self._plain(run_host, run_size, run_guest)
            run_host, run_guest, run_size = host, guest, cluster
        if run_size:
            self._plain(run_host, run_size, run_guest)
        if len(hosts) > EXTENT_LIMIT:
            raise MapTooLarge
        return range(first, len(hosts))

    def _plain(self, host: int, size: int, guest: int) -> None:
        self.hosts.append(host)
        self.sizes.append(min(size, self.header.virtual_size - guest))
        self.guests.append(guest)
        self.kinds.append(0)

    def _check(self, host: int, needed: int, guest: int) -> None:
        """Raise `ImageCorrupt` if the data lies outside the file.

        Writers may end a file within its last cluster, at a sector boundary, and QEMU reads zeros past the end. A file
        that ends within a sector was truncated.
        """
        length = self.length
        if length is None or host + needed <= length:
            return
        if host >= length or length % 512:
            raise ImageCorrupt(
                f"the file is truncated: it ends at {length} bytes, but disk offset {guest:#x} is stored at {host:#x}"
            )

    def sort_by_host_offset(self) -> None:
        """Sort the extents by offset in the file."""
        hosts = self.hosts
        if all(a <= b for a, b in pairwise(hosts)):
            return
        order = sorted(range(len(hosts)), key=hosts.__getitem__)
        self.hosts = array("Q", map(hosts.__getitem__, order))
        self.sizes = array("Q", map(self.sizes.__getitem__, order))
        self.guests = array("Q", map(self.guests.__getitem__, order))
        self.kinds = bytearray(map(self.kinds.__getitem__, order))

    def extent(self, position: int) -> Extent:
        compressed = self.kinds[position] == 1
        guest = self.guests[position]
        size = self.sizes[position]
        length = min(self.cluster_size, self.header.virtual_size - guest) if compressed else size
        return Extent(self.hosts[position], size, guest, length, compressed)

    def data_bytes(self) -> int:
        """Return the number of bytes of the disk for which the file holds data."""
        compressed = self.kinds.count(1)
        plain = sum(size for size, kind in zip(self.sizes, self.kinds, strict=True) if kind == 0)
        return min(self.header.virtual_size, compressed * self.cluster_size + plain)

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield the unallocated runs of the disk, which read as zeros, as (offset, length) in ascending order."""
        position = 0
        for index in sorted(range(len(self.guests)), key=self.guests.__getitem__):
            extent = self.extent(index)
            if extent.guest > position:
                yield position, extent.guest - position
            position = max(position, extent.guest + extent.length)
        if position < self.header.virtual_size:
            yield position, self.header.virtual_size - position


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
    image: Qcow2Map, length: int, *, begin: int, size: int, whole: bool, gap: int = 1 << 18
) -> Iterator[FileChunk]:
    """Split the file of a sealed map into pieces of about `size` bytes without splitting an extent.

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


def _entries(table: bytes | bytearray | memoryview) -> array[int]:
    values = array("Q")
    values.frombytes(table)
    if sys.byteorder == "little":
        values.byteswap()
    return values
