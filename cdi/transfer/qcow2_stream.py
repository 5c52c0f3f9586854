"""qcow2 as a one-way stream: decoded while it comes.

The usual writers lay a table before the data that it maps, so most clusters can go straight to the disk.  What comes
before its table is kept aside (`cdi.transfer.spill`) and looked up when the table has come.  The stream is cut into
windows; the extents of a window are decoded by a small pool of threads while the next window fills.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cdi.api.errors import ContentTruncated, ImageCorrupt
from cdi.codec.base import Buffer
from cdi.image.formats.qcow2 import Qcow2Header
from cdi.image.qcow2map import RUN_LIMIT, Extent, Qcow2Map
from cdi.target.base import ALIGNMENT, Target
from cdi.target.buffer import aligned_buffer
from cdi.transfer.clusters import ClusterWriter, inflater
from cdi.transfer.spill import Spill

_WINDOW = 4 << 20
_CARRY = RUN_LIMIT
"""The largest extent, which a window may hand on to the next one; twice a cluster where that is more."""
_WINDOWS = 4
_DECODERS = 4
"""More than processors: each waits for its own writes."""
_SECTOR = 512
_POSITION_BITS = 32
"""More than `EXTENT_LIMIT` and a table's entries need."""


class _Table:
    """L1 or an L2 table on its way in."""

    __slots__ = ("data", "index", "offset", "size")

    def __init__(self, offset: int, size: int, index: int) -> None:
        self.offset, self.size, self.index = offset, size, index
        """`index` of the L2 table, -1 for L1."""
        self.data = bytearray()

    @property
    def stop(self) -> int:
        return self.offset + self.size


class Qcow2Stream:
    """Takes the file's bytes in order and writes the disk.

    Raises `ContentTruncated`, `ImageCorrupt`, `DecoderFailed`, `ScratchNeeded`, `MapTooLarge`, and target errors.
    """

    def __init__(self, header: Qcow2Header, target: Target, scratch: str | None) -> None:
        self._map = Qcow2Map(header, None)
        self._target = target
        self._spill = Spill(scratch)
        self._future: list[int] = []
        """A heap of the extents still to come: host and position in the map in one number, as there may be a million
        of them."""
        offset, size = self._map.l1_range
        self._tables: list[tuple[int, int, _Table]] = [(offset, -1, _Table(offset, size, -1))]
        self._expected = 1
        """Tables, L1 among them, that are not read yet."""
        self._writers: deque[ClusterWriter] = deque(
            ClusterWriter(target, inflater(header.compression_type), self._map.cluster_size) for _ in range(_DECODERS)
        )
        self._base = 0
        """Offset of the window in the file."""

    @property
    def scratch(self) -> int:
        """Bytes that went through scratch space."""
        return self._spill.scratch

    def run(self, pieces: Iterator[Buffer]) -> None:
        """Consume the whole stream."""
        try:
            with ThreadPoolExecutor(_DECODERS, "decode") as pool:
                self._consume(pieces, pool)
        finally:
            self._spill.close()
        if not self._target.reads_zero:
            for offset, size in self._map.holes():
                self._target.zero(offset, size)

    def _consume(self, pieces: Iterator[Buffer], pool: ThreadPoolExecutor) -> None:
        # The carry of one window goes to the head of the next: the largest extent, behind a pad that keeps file
        # offsets and memory aligned alike.
        carry = max(_CARRY, 2 * self._map.cluster_size) + ALIGNMENT
        free = deque(aligned_buffer(carry + _WINDOW) for _ in range(_WINDOWS))
        busy: deque[tuple[list[Future[None]], memoryview]] = deque()
        buffer, start, filled = free.popleft(), 0, 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                count = min(len(view), len(buffer) - filled)
                buffer[filled : filled + count] = view[:count]
                filled, view = filled + count, view[count:]
                if filled < len(buffer):
                    continue
                used, jobs = self._window(buffer[start:filled], pool, final=False)
                if not free:
                    self._settle(busy, free)
                rest = buffer[start + used : filled]
                pad = (self._base + used) % ALIGNMENT
                following = free.popleft()
                following[pad : pad + len(rest)] = rest
                busy.append((jobs, buffer))
                self._base += used
                buffer, start, filled = following, pad, pad + len(rest)
        used, jobs = self._window(buffer[start:filled], pool, final=True)
        busy.append((jobs, buffer))
        while busy:
            self._settle(busy, free)
        self._finish(self._base + filled - start, pool)

    def _settle(self, busy: deque[tuple[list[Future[None]], memoryview]], free: deque[memoryview]) -> None:
        jobs, buffer = busy.popleft()
        for job in jobs:
            job.result()
        free.append(buffer)

    def _window(self, window: memoryview, pool: ThreadPoolExecutor, *, final: bool) -> tuple[int, list[Future[None]]]:
        """Deal with `window`, the file's bytes from `_base`; gives how many of them are done with, and the jobs that
        still read from it.
        """
        base, stop = self._base, self._base + len(window)
        known = self._read_tables(window, base)
        doubtful: list[tuple[int, int]] = []
        batch: list[tuple[Extent, memoryview]] = []
        end = stop
        while self._future and self._future[0] >> _POSITION_BITS < stop:
            host, position = divmod(self._future[0], 1 << _POSITION_BITS)
            extent = self._map.extent(position)
            at = host - base
            if at >= 0 and host + extent.size > stop:
                if not final:
                    end = host
                    break
                if not extent.compressed and stop % _SECTOR:
                    raise ContentTruncated(f"the image ends at byte {stop}, within the data at {host:#x}")
            heapq.heappop(self._future)
            if at < 0:
                # Its beginning went by in an earlier window, as another extent's (clusters may share bytes).
                self._late(extent, window, pool)
                continue
            claimed = extent.size
            if extent.compressed:
                # Where in its last sector it ends is only known once it is inflated; another may begin there.
                claimed = max(0, extent.size - _SECTOR)
                doubtful.append((host + claimed, host + extent.size))
            known.append((host, host + claimed))
            batch.append((extent, window[at : at + extent.size]))
        if self._expected:
            self._keep(known, doubtful, window, base, end)
        return end - base, self._dispatch(batch, pool)

    def _read_tables(self, window: memoryview, base: int) -> list[tuple[int, int]]:
        """Take in the tables whose bytes have come, and those that they lead to; gives the runs that they take up."""
        stop = base + len(window)
        known: list[tuple[int, int]] = []
        unfinished = []
        while self._tables and self._tables[0][0] < stop:
            _, _, table = heapq.heappop(self._tables)
            have = table.offset + len(table.data)
            if have < base:
                table.data += self._spill.read(have, min(base, table.stop) - have)
                have = table.offset + len(table.data)
                if have < base and have < table.stop:
                    raise ImageCorrupt(f"the table at {table.offset:#x} shares its place with other data")
            if have < table.stop:
                part = window[have - base : min(table.stop, stop) - base]
                known.append((have, have + len(part)))
                table.data += part
            if len(table.data) < table.size:
                unfinished.append(table)
            else:
                self._learn(table)
        for table in unfinished:
            heapq.heappush(self._tables, (table.offset, table.index, table))
        return known

    def _learn(self, table: _Table) -> None:
        self._expected -= 1
        image = self._map
        if table.index < 0:
            for index, offset in image.tables(table.data):
                heapq.heappush(self._tables, (offset, index, _Table(offset, image.cluster_size, index)))
                self._expected += 1
            return
        for position in image.add_table(table.index, table.data):
            heapq.heappush(self._future, image.hosts[position] << _POSITION_BITS | position)

    def _keep(
        self, known: list[tuple[int, int]], doubtful: list[tuple[int, int]], window: memoryview, base: int, end: int
    ) -> None:
        """Put aside what no table has claimed yet.

        `doubtful` are the last sectors of compressed extents.  What lies between such an extent's end and the next
        known one is mostly nothing, and at most a small cluster of a table still to come.
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

    def _late(self, extent: Extent, window: memoryview, pool: ThreadPoolExecutor) -> None:
        """Write an extent that begins before the window: from what was put aside, and the window's beginning."""
        data = self._spill.read(extent.host, extent.size)
        at = extent.host + len(data) - self._base
        if len(data) < extent.size and 0 <= at < len(window):
            data += window[at : at + extent.size - len(data)]
        # A compressed extent's last sector may belong to its neighbour.
        missing = extent.size - len(data)
        if not data or (missing and not (extent.compressed and missing < _SECTOR)):
            raise ImageCorrupt(f"the data of disk offset {extent.guest:#x} at {extent.host:#x} overlaps other data")
        pool.submit(self._decode, [(extent, memoryview(data))]).result()

    def _dispatch(self, batch: list[tuple[Extent, memoryview]], pool: ThreadPoolExecutor) -> list[Future[None]]:
        share = -(-len(batch) // _DECODERS)
        return [pool.submit(self._decode, batch[at : at + share]) for at in range(0, len(batch), share or 1)]

    def _decode(self, batch: list[tuple[Extent, memoryview]]) -> None:
        # There are as many writers as threads, so there is always one free.
        writer = self._writers.popleft()
        try:
            for extent, data in batch:
                writer.put(extent, data)
            writer.flush()
        finally:
            self._writers.append(writer)

    def _finish(self, total: int, pool: ThreadPoolExecutor) -> None:
        """The stream has ended after `total` bytes: nothing may be missing."""
        if self._tables:
            raise ContentTruncated(f"the image ends at byte {total}, before its table at {self._tables[0][0]:#x}")
        while self._future:
            host, position = divmod(heapq.heappop(self._future), 1 << _POSITION_BITS)
            extent = self._map.extent(position)
            if host >= total or total % _SECTOR:
                raise ContentTruncated(f"the image ends at byte {total}, before the data at {host:#x}")
            pool.submit(self._decode, [(extent, memoryview(self._spill.read(host, extent.size)))]).result()
