"""Import of a mapped image that cannot be read with range requests.

Most programs write a table before the data that it maps, so most clusters can be written to the disk as they arrive.
Data that precedes its table is stored (`cdi.transfer.pipeline.spill`) and read back once the table has arrived.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cdi.api.errors import ContentTruncated, FormatUnsupported, ImageCorrupt
from cdi.codec.base import Buffer
from cdi.image.block_map import Encoding, Extent, MapBuilder, MapTooLarge, TableRange
from cdi.image.formats.vmdk import AT_END, Header, parse_header
from cdi.image.inspect import map_builder
from cdi.image.sizes import SECTOR
from cdi.image.vmdk_stream import GrainStream
from cdi.target.base import Target
from cdi.transfer.context import ImportContext
from cdi.transfer.pipeline.spill import SpillBuffer
from cdi.transfer.pipeline.windows import WindowedDecoder
from cdi.transfer.unwrap import HEAD, peek

_POSITION_BITS = 32
"""Bits for a position in the map; more than `EXTENT_LIMIT` and a table's entries need."""


class _Table:
    """A table while it is received."""

    __slots__ = ("data", "offset", "size", "wanted")

    def __init__(self, wanted: TableRange) -> None:
        self.wanted = wanted
        self.offset, self.size = wanted.offset, wanted.size
        self.data = bytearray()

    @property
    def stop(self) -> int:
        return self.offset + self.size


class MappedStream:
    """Import of a mapped image that is read once, in order."""

    def __init__(self, stream: Iterator[Buffer]) -> None:
        self._stream = stream

    def run(self, context: ImportContext) -> int:
        disk_size = context.plan.disk_size
        assert disk_size is not None
        image, wrappers = context.unwrapped.image, context.unwrapped.wrappers
        assert image is not None
        head, stream = peek(self._stream, HEAD)
        decoder: WindowedDecoder
        if image.format == "vmdk" and (header := parse_header(head)).directory_offset == AT_END:
            decoder = GrainDecoder(header, context.target)
        else:
            builder = map_builder(image, head, None if wrappers else context.reader.facts.length)
            decoder = MappedDecoder(builder, context.target, context.job.scratch)
        # The builder compares the header with the length of the file, and a volume stays as it was if it refuses.
        context.prepare_target()
        context.control.meter.phase = "transferring"
        try:
            decoder.run(stream)
        except MapTooLarge:
            raise FormatUnsupported(
                "the image has more extents than can be kept in memory while it streams",
                remedy="serve it with byte ranges and not compressed as a whole",
            ) from None
        finally:
            context.result.scratch += decoder.scratch
        return disk_size


class GrainDecoder(WindowedDecoder):
    """Decoder of a streamOptimized VMDK whose tables follow its grains, which are compared with them."""

    def __init__(self, header: Header, target: Target) -> None:
        super().__init__(target, header.grain * SECTOR)
        self._grains = GrainStream(header)

    def _window(self, window: memoryview, pool: ThreadPoolExecutor, *, final: bool) -> tuple[int, list[Future[None]]]:
        grains = self._grains.feed(window, self._base, final=final)
        return min(len(window), self._grains.position - self._base), self._dispatch(grains, pool)

    def _finish(self, total: int) -> None:
        self._grains.finish(total)

    def _holes(self) -> Iterator[tuple[int, int]]:
        return self._grains.holes()


class MappedDecoder(WindowedDecoder):
    """Decoder that consumes a mapped image in order and writes the disk.

    Raises:
        ContentTruncated: The file ends early.
        ImageCorrupt: The metadata is inconsistent.
        DecoderFailed: A compressed cluster cannot be inflated.
        ScratchNeeded: More data precedes its tables than memory may hold, and there is no scratch space.
        MapTooLarge: The image has too many extents.
        TargetError: The disk cannot be written.
    """

    def __init__(self, builder: MapBuilder, target: Target, scratch: str | None) -> None:
        super().__init__(target, builder.map.block_size)
        self._builder = builder
        self._map = builder.map
        self._spill = SpillBuffer(scratch)
        self._pending_extents: list[int] = []
        """Heap of the extents not yet received, with host offset and map position packed into one number each.

        There may be a million of them.
        """
        self._tables: list[tuple[int, int, _Table]] = []
        """Heap of the requested tables, by offset and number of the request."""
        self._requests = 0
        self._expect(builder.begin())

    @property
    def scratch(self) -> int:
        """Bytes that went through scratch space."""
        return self._spill.scratch

    def run(self, pieces: Iterator[Buffer]) -> None:
        try:
            super().run(pieces)
        finally:
            self._spill.close()

    def _holes(self) -> Iterator[tuple[int, int]]:
        return self._map.holes()

    def _window(self, window: memoryview, pool: ThreadPoolExecutor, *, final: bool) -> tuple[int, list[Future[None]]]:
        base, stop = self._base, self._base + len(window)
        known = self._read_tables(window, base)
        doubtful: list[tuple[int, int]] = []
        batch: list[tuple[Extent, memoryview]] = []
        end = stop
        while self._pending_extents and self._pending_extents[0] >> _POSITION_BITS < stop:
            host, position = divmod(self._pending_extents[0], 1 << _POSITION_BITS)
            extent = self._map.extent(position)
            at = host - base
            if at >= 0 and host + extent.size > stop:
                if not final:
                    end = host
                    break
                # The size of a grain is an upper bound, and its writer knows the exact one.
                if extent.encoding is not Encoding.GRAIN and (
                    not self._map.short_end or (extent.encoding is Encoding.STORED and stop % SECTOR)
                ):
                    raise ContentTruncated(f"the image ends at byte {stop}, within the data at {host:#x}")
            heapq.heappop(self._pending_extents)
            if at < 0:
                # It begins in an earlier window, as part of another extent (compressed clusters may share a sector).
                self._write_spilled_extent(extent, window, pool)
                continue
            claimed = extent.size
            if extent.encoding is not Encoding.STORED:
                # Where it ends within its last sector is known only after inflation; another extent may begin there.
                claimed = max(0, extent.size - SECTOR)
                doubtful.append((host + claimed, host + extent.size))
            known.append((host, host + claimed))
            batch.append((extent, window[at : at + extent.size]))
        if self._tables:
            self._spill_unclaimed(known, doubtful, window, base, end)
        return end - base, self._dispatch(batch, pool)

    def _read_tables(self, window: memoryview, base: int) -> list[tuple[int, int]]:
        """Read the tables whose bytes have arrived, and those they refer to; return the byte runs that they occupy."""
        stop = base + len(window)
        known: list[tuple[int, int]] = []
        unfinished = []
        while self._tables and self._tables[0][0] < stop:
            _, _, table = item = heapq.heappop(self._tables)
            have = table.offset + len(table.data)
            if have < base:
                table.data += self._spill.read(have, min(base, table.stop) - have)
                have = table.offset + len(table.data)
                if have < base and have < table.stop:
                    raise ImageCorrupt(f"the table at {table.offset:#x} overlaps other data")
            if have < table.stop:
                part = window[have - base : min(table.stop, stop) - base]
                known.append((have, have + len(part)))
                table.data += part
            if len(table.data) < table.size:
                unfinished.append(item)
            else:
                self._index_table(table)
        for item in unfinished:
            heapq.heappush(self._tables, item)
        return known

    def _index_table(self, table: _Table) -> None:
        more, extents = self._builder.feed(table.wanted, table.data)
        self._expect(more)
        for position in extents:
            heapq.heappush(self._pending_extents, self._map.hosts[position] << _POSITION_BITS | position)

    def _expect(self, tables: list[TableRange]) -> None:
        for table in tables:
            heapq.heappush(self._tables, (table.offset, self._requests, _Table(table)))
            self._requests += 1

    def _spill_unclaimed(
        self, known: list[tuple[int, int]], doubtful: list[tuple[int, int]], window: memoryview, base: int, end: int
    ) -> None:
        """Store the data that no table refers to yet.

        `doubtful` are the last sectors of compressed extents. The gap from such a sector to the next known run is
        usually padding, and at most a small compressed cluster of a table not yet received.
        """
        tails = deque(sorted(doubtful))

        def gap(start: int, stop: int) -> None:
            while tails and tails[0][1] < stop:
                tails.popleft()
            small = bool(tails) and tails[0][0] <= start
            (self._spill.add_small if small else self._spill.add)(start, window[start - base : stop - base])

        position = base
        for start, stop in sorted(known):
            if min(start, end) > position:
                gap(position, min(start, end))
            position = max(position, stop)
        if position < end:
            gap(position, end)

    def _write_spilled_extent(self, extent: Extent, window: memoryview, pool: ThreadPoolExecutor) -> None:
        """Write an extent that begins before the window, from the stored data and the start of the window."""
        data = self._spill.read(extent.host, extent.size)
        at = extent.host + len(data) - self._base
        if len(data) < extent.size and 0 <= at < len(window):
            data += window[at : at + extent.size - len(data)]
        # The last sector of a compressed extent may belong to its neighbour.
        missing = extent.size - len(data)
        if not data or (missing and not (extent.encoding is not Encoding.STORED and missing < SECTOR)):
            raise ImageCorrupt(f"the data of disk offset {extent.guest:#x} at {extent.host:#x} overlaps other data")
        pool.submit(self._decode, [(extent, memoryview(data))]).result()

    def _finish(self, total: int) -> None:
        if self._tables:
            raise ContentTruncated(f"the image ends at byte {total}, before its table at {self._tables[0][0]:#x}")
        while self._pending_extents:
            host, position = divmod(heapq.heappop(self._pending_extents), 1 << _POSITION_BITS)
            extent = self._map.extent(position)
            if host >= total or total % SECTOR:
                raise ContentTruncated(f"the image ends at byte {total}, before the data at {host:#x}")
            self._decode([(extent, memoryview(self._spill.read(host, extent.size)))])
        self._builder.finish()
