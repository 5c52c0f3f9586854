"""Check that a file contains all data that its own tables refer to.

QEMU reads zeros past the end of a file, so an image that was truncated at its source would become a disk with holes.
The tables are therefore walked once before anything is written: the file must contain the furthest byte that they refer
to.

Performs no I/O: the caller answers ranges. Only the current chunk of a table is held in memory, and no table outside
the file is read, so the work is bounded by the file's length and not by the header's claims.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from cdi.api.errors import ContentTruncated, ImageCorrupt, ImageError
from cdi.image.block_map import NAME, MapBuilder, TableRange, table_entries, within
from cdi.image.checks import Check
from cdi.image.formats.qcow2 import Qcow2Header, parse_header
from cdi.image.info import ImageInfo
from cdi.image.inspect import map_builder
from cdi.image.sizes import SECTOR, round_up

Read = Callable[[Sequence[tuple[int, int]]], Iterable[bytes]]
"""Function that returns the bytes of ranges, (offset, length) in bytes, in their order.

Each range is at most 1 MiB and within the file; those of one call are at most 4 MiB together and may be fetched
concurrently.
"""

_CHUNK_SIZE: Final = 1 << 20
_BATCH_BYTES: Final = 4 << 20
_DIRECTORY_CHUNK: Final = 64 << 10
"""Chunk size in bytes of a table of tables, each entry of which becomes a tuple while its chunk is walked."""
_GAP: Final = 128 << 10
"""Gap in bytes between two tables up to which reading across it is cheaper than a second range."""
_HEAD: Final = 64 << 10

_QCOW2_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_QCOW2_COMPRESSED: Final = 1 << 62
_QCOW2_ZERO: Final = 1


def check_data_within_file(image: ImageInfo, length: int, read: Read) -> Check | None:
    """Return the passed check for an image of `length` bytes; None if its format has no tables.

    The part of the last block past the end of the disk may be missing, except in a VHD.

    Raises:
        ContentTruncated: data that the disk needs lies past the end of the file.
        ImageCorrupt: data lies further than any writer would have put it, or tables overlap.
    """
    if image.raw_extent is not None or image.format == "raw" or image.virtual_size is None:
        return None
    if image.format == "qcow2":
        _qcow2(_TableWalker(image=image, size=image.virtual_size, length=length, read=read))
    else:
        (head,) = read([(0, min(_HEAD, length))])
        _feed_tables(map_builder(image, head, length), read)
    return within(length)


def _feed_tables(builder: MapBuilder, read: Read) -> None:
    """Feed a builder with all tables without keeping the extents, of which QEMU reads any number."""
    builder.map.keep_extents = False
    pending = deque(builder.begin())
    while pending:
        batch: list[TableRange] = []
        wanted = 0
        while pending and wanted + pending[0].size <= _BATCH_BYTES:
            batch.append(pending.popleft())
            wanted += batch[-1].size
        for table, data in zip(batch, read([(offset, size) for offset, size, _ in batch]), strict=True):
            if len(data) != table.size:
                builder.map.refuse("a table", table.offset, table.offset + table.size)
            # Depth first: the tables of one part of a directory are read before its next part.
            pending.extendleft(reversed(builder.feed(table, data)[0]))


@dataclass(slots=True, kw_only=True)
class _TableWalker:
    """Walk over the tables of a file, with the checks that apply to every offset in them."""

    image: ImageInfo
    size: int
    """Size of the disk in bytes."""
    length: int
    """Size of the file in bytes."""
    read: Read
    tables: int = 0
    """Bytes of tables so far."""
    bytes_read: int = 0
    """Bytes read so far, including gaps between tables."""
    last: tuple[int, int, int] = (0, 0, 0)
    """File offset, size and disk offset of the compressed block that begins last.

    A block that begins before another also ends before it.
    """

    def require_within(self, what: str, start: int, end: int) -> None:
        """Raise unless the file contains the bytes from `start` to `end`."""
        if end > self.length:
            self.refuse(what, start, end)

    def need_data(self, guest: int, host: int, size: int) -> None:
        """Do what `require_within` does for a block of the disk, whose part past the end of the disk may be missing."""
        self.require_within(_at(guest), host, host + min(size, self.size - guest))

    def refuse(self, what: str, start: int, end: int) -> NoReturn:
        said = f"{what} is stored at bytes {start} to {end} of a file of {self.length} bytes"
        # A file holds every block once, and the tables; no writer needs twice that, plus 1 GiB for small disks.
        if start > 2 * self.size + (1 << 30):
            raise self._error(ImageCorrupt, said)
        raise self._error(ContentTruncated, f"{said}: the file is truncated")

    def corrupt(self, what: str) -> NoReturn:
        raise self._error(ImageCorrupt, what)

    def _error(self, kind: type[ImageError], what: str) -> ImageError:
        error = kind(what, where=self.image.format)
        error.checks = (Check(name=NAME, passed=False, detail=what),)
        return error

    def one(self, offset: int, size: int) -> bytes:
        """Return a few bytes; raise if the file ends before them."""
        self.require_within("a header", offset, offset + size)
        return next(iter(self._answers([(offset, size)])))

    def run(self, what: str, offset: int, size: int, piece: int = _CHUNK_SIZE) -> Iterator[tuple[int, bytes]]:
        """Yield the chunks of a contiguous table as (bytes before, bytes)."""
        self.require_within(what, offset, offset + size)
        for first in range(0, size, _BATCH_BYTES):
            starts = range(first, min(size, first + _BATCH_BYTES), _CHUNK_SIZE)
            answers = self._answers([(offset + start, min(_CHUNK_SIZE, size - start)) for start in starts])
            for start, data in zip(starts, answers, strict=True):
                for at in range(0, len(data), piece):
                    yield start + at, data[at : at + piece]

    def scattered(self, what: str, tables: list[tuple[int, int, int]]) -> Iterator[tuple[int, bytes]]:
        """Yield tables, given as (key, offset, size) of at most a chunk each, as (key, bytes) in file order.

        A table that maps several parts of the disk is read once, for one of them.
        """
        tables.sort(key=lambda table: (table[1], -table[2]))
        # An adversarial order of tables could make the gaps between them be read repeatedly.
        gap = _GAP if self.bytes_read < 2 * self.length else 0
        groups: list[list[tuple[int, int, int]]] = []
        ranges: list[tuple[int, int]] = []
        wanted, before = 0, -1
        for table in tables:
            key, offset, size = table
            self.require_within(f"{what} {key}", offset, offset + size)
            if offset == before:
                continue
            before = offset
            # Overlapping tables would let a small file describe an unbounded amount of data.
            self.tables += max(size, SECTOR)
            if self.tables > round_up(self.length, SECTOR):
                self.corrupt(f"its {what}s overlap: together they exceed the size of the file")
            if ranges:
                start, extent = ranges[-1]
                end = max(start + extent, offset + size)
                more = end - start - extent
                if offset <= start + extent + gap and extent + more <= _CHUNK_SIZE and wanted + more <= _BATCH_BYTES:
                    wanted += more
                    ranges[-1] = (start, end - start)
                    groups[-1].append(table)
                    continue
            if wanted + size > _BATCH_BYTES:
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
            self.bytes_read += size
            yield data


# --- tables of tables -------------------------------------------------------------------------------------------


def _qcow2(walk: _TableWalker) -> None:
    """Check a qcow2 image (QEMU's docs/interop/qcow2.txt, "L1/L2 table entries"), extended entries included."""
    header = parse_header(walk.one(0, min(_HEAD, walk.length)), walk.length)
    cluster, width = header.cluster_size, header.l2_entry_size
    clusters = -(-walk.size // cluster)
    for before, data in walk.run("the L1 table", header.l1_offset, 8 * header.l1_needed, _DIRECTORY_CHUNK):
        tables = []
        for index, entry in enumerate(table_entries("Q", data, "big"), before // 8):
            place = entry & _QCOW2_OFFSET
            if place == 0:
                continue
            if place % cluster:
                walk.corrupt(f"L2 table {index} at {place:#x} is not aligned to a cluster")
            walk.require_within(f"L2 table {index}", place, place + cluster)
            first = index * header.l2_entries
            size = width * min(header.l2_entries, clusters - first)
            # Tables of the largest clusters exceed a chunk.
            tables += [
                (first + at // width, place + at, min(_CHUNK_SIZE, size - at)) for at in range(0, size, _CHUNK_SIZE)
            ]
        for first, table in walk.scattered("L2 table", tables):
            _l2_table(walk, header, first, table)
    _last_inflates(walk, header)


def _l2_table(walk: _TableWalker, header: Qcow2Header, first: int, table: bytes) -> None:
    """Check one L2 table; `first` is the number of the cluster that its first entry maps."""
    cluster = header.cluster_size
    words = table_entries("Q", table, "big")
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
        # As in `cdi.image.qcow2_map`: writers end a file at a sector boundary; truncation happens anywhere.
        if host and size and host + size > length and (host >= length or length % SECTOR):
            walk.need_data((first + number) * cluster, host, size)


def _last_inflates(walk: _TableWalker, header: Qcow2Header) -> None:
    """Decompress the last compressed cluster if the file ends within it: its size is known in whole sectors only.

    With zeros in place of the missing part, as QEMU reads it, a cluster may decompress to its full size with wrong
    content.
    """
    host, size, guest = walk.last
    if host + size <= walk.length:
        return
    packed = b"".join(piece for _, piece in walk.run("a compressed cluster", host, walk.length - host))
    try:
        if header.compression_type:
            from cdi.image.zstd import zstd

            plain = zstd.ZstdDecompressor().decompress(packed, header.cluster_size)
        else:
            plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, header.cluster_size)
    except Exception:  # noqa: BLE001 - each decoder has its own error class; the reader rejects damaged data
        return
    if len(plain) < header.cluster_size:
        walk.refuse(_at(guest), host, host + size)


# --- helpers ----------------------------------------------------------------------------------------------------


def _at(guest: int) -> str:
    return f"disk offset {guest:#x}"
