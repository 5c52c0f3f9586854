"""Block cache over a source with random access, between a converter and a digest.

The converter's small, roughly sequential reads become large ranged reads, several at a time and ahead of need, and
every byte of the source passes through the digest once, in order.

Blocks of fixed size occupy a fixed number of buffers. Loader threads fetch, in this order: blocks that a reader waits
for; blocks between the watermark and the readers, if that keeps the digest from falling behind; blocks that a
sequential reader will need next.

The watermark is the first block that the digest has not seen. Images are written roughly sequentially, so nearly every
block is still cached when its turn comes. A block that was read far ahead of the watermark and evicted is fetched again
by `finish`; `fetched` counts it twice, which is the price of a correct digest over an image that is read out of order.
In the worst case the source is fetched once for the digest and once for the converter.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Self

from cdi.api.errors import CdiError, InternalError, Interrupted

Fetch = Callable[[int, memoryview], None]
"""Function that fills the view with the bytes at an offset.

It is called from several threads concurrently. It retries, throttles and counts itself, and raises a `CdiError` when it
gives up permanently.
"""

REORDER_WINDOW = 3
"""Blocks by which parallel reads of one sequential reader may arrive out of order."""
SEQUENTIAL_RUN = 4
"""Length in blocks from which a run is sequential reading, and not a table lookup."""


class Block:
    """Buffer and its content.

    The cache's lock guards every field. One loader writes the bytes before `ready`; afterwards they are only read.
    """

    __slots__ = ("buffer", "index", "pins", "ready", "touched", "used", "view")

    def __init__(self, index: int, buffer: memoryview, length: int) -> None:
        self.index = index
        self.buffer = buffer
        self.view = buffer[:length]
        self.ready = False
        self.pins = 0
        self.touched = False
        """Whether a reader requested it."""
        self.used = 0


class BlockCache:
    """Implementation of `BlockReader` over a source, for `cdi.transfer.qemu.nbd`."""

    def __init__(
        self,
        *,
        length: int,
        fetch: Fetch,
        block_size: int = 2 << 20,
        memory: int = 48 << 20,
        connections: int = 4,
        on_block_in_order: Callable[[memoryview], None] | None = None,
    ) -> None:
        """Configure the cache; `length`, `block_size` and `memory` are in bytes.

        `connections` is the number of concurrent fetches. `on_block_in_order` receives every byte of the source once,
        in order, from one thread at a time; a `CdiError` that it raises ends the reading.
        """
        self.length = length
        self.block_size = block_size
        self.fetched = 0
        """Bytes received from `fetch`."""
        self._capacity = max(4, memory // block_size)
        self._connections = max(1, min(connections, self._capacity // 2))
        self._fetch = fetch
        self._on_block_in_order = on_block_in_order
        self._count = -(-length // block_size)
        self._depth = max(1, self._capacity // 2 - 1)

        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        """Notified when a block is ready, the watermark moves, or an error occurs."""
        self._work = threading.Condition(self._lock)
        """Notified when there may be a block to load, or a buffer for it."""
        # A reader pins at most two blocks; this many readers leave a buffer for every loader and one for the digest.
        self._readers = threading.BoundedSemaphore(max(1, (self._capacity - self._connections - 1) // 2))
        self._local = threading.local()

        self._blocks: dict[int, Block] = {}
        self._buffers = 0
        self._clock = 0
        self._waiters: dict[int, int] = {}
        """Number of waiting readers by block."""
        self._runs: OrderedDict[int, int] = OrderedDict()
        """Length of the sequential run that ends at a block, for the most recent blocks."""
        self._ahead: deque[range] = deque(maxlen=4)
        """Readahead ranges of sequential readers, most recent reader first."""
        self._watermark = 0
        self._catch_up = 0
        """End of the blocks to load for the digest."""
        self._catch_up_first = False
        """Whether the digest's blocks are loaded before those that readers request."""
        self._digesting = False
        self._broken: CdiError | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []

    # --- readers ------------------------------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> Sequence[memoryview]:
        """Return `length` bytes, at most `block_size`, in one or two views.

        The views are valid until `release` or this thread's next call.

        Raises:
            CdiError: `fetch` or the digest failed.
            Interrupted: the cache was closed.
            InternalError: the range is out of bounds.
        """
        self.release()
        if offset < 0 or length <= 0 or length > self.block_size or offset + length > self.length:
            raise InternalError(f"read of {length} bytes at offset {offset} is out of bounds")
        first, last = offset // self.block_size, (offset + length - 1) // self.block_size
        views: list[memoryview] = []
        pinned: list[Block] = []
        self._readers.acquire()
        self._local.pinned = pinned
        try:
            with self._lock:
                self._start()
                for index in range(first, last + 1):
                    self._update_readahead(index)
                for index in range(first, last + 1):
                    block = self._wait_for(index)
                    block.pins += 1
                    self._clock += 1
                    block.used = self._clock
                    block.touched = True
                    pinned.append(block)
                    start = index * self.block_size
                    views.append(block.view[max(0, offset - start) : offset + length - start])
        except BaseException:
            self.release()
            raise
        return views

    def release(self) -> None:
        """Release the views that this thread received last."""
        pinned: list[Block] | None = getattr(self._local, "pinned", None)
        if pinned is None:
            return
        self._local.pinned = None
        with self._lock:
            for block in pinned:
                block.pins -= 1
            self._work.notify()
        self._readers.release()

    def _wait_for(self, index: int) -> Block:
        while True:
            self._check()
            block = self._blocks.get(index)
            if block is not None and block.ready:
                return block
            self._waiters[index] = self._waiters.get(index, 0) + 1
            self._work.notify()
            try:
                self._ready.wait()
            finally:
                self._waiters[index] -= 1
                if not self._waiters[index]:
                    del self._waiters[index]

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._closed:
            raise Interrupted("reading the image was interrupted")

    def _update_readahead(self, index: int) -> None:
        """Record a read of a block and update the readahead."""
        if index in self._runs:
            return
        # Parallel reads of a converter arrive out of order by a block or two.
        run = 1 + max(self._runs.get(index - before, 0) for before in range(1, REORDER_WINDOW + 1))
        self._runs[index] = run
        if len(self._runs) > 4 * self._capacity:
            self._runs.popitem(last=False)
        # Reading at the first block is usually sequential; elsewhere a run must show it first.
        depth = min(self._depth, 1 << run) if run > 1 or index == 0 else 0
        if depth:
            start, stop = index + 1, min(self._count, index + 1 + depth)
            for ahead in self._ahead:
                if ahead.start - REORDER_WINDOW <= index <= ahead.stop:
                    self._ahead.remove(ahead)
                    start, stop = max(start, ahead.start), max(stop, ahead.stop)
                    break
            self._ahead.appendleft(range(start, stop))
        if self._on_block_in_order is not None and index > self._watermark:
            if index - self._watermark <= self._capacity // 2:
                self._catch_up = max(self._catch_up, index + 1)
            elif run >= SEQUENTIAL_RUN:
                # The readers outrun the digest, or have moved elsewhere permanently. The digest needs the skipped
                # blocks in any case; loading them first avoids fetching twice what the readers request from here on.
                self._catch_up = max(self._catch_up, index + 1)
                self._catch_up_first = True
        self._work.notify_all()

    # --- the digest ---------------------------------------------------------------------------------------------

    @property
    def watermark(self) -> int:
        """Bytes from the start of the source that the digest has seen."""
        with self._lock:
            return min(self.length, self._watermark * self.block_size)

    def finish(self) -> None:
        """Fetch all blocks that the digest has not seen.

        Raises:
            CdiError: `fetch` or the digest failed.
            Interrupted: the cache was closed.
        """
        if self._on_block_in_order is None:
            return
        with self._lock:
            self._start()
            self._ahead.clear()
            self._catch_up = self._count
            self._work.notify_all()
            while self._watermark < self._count:
                self._check()
                self._ready.wait()
            self._check()

    def _advance(self) -> None:
        """Pass every block whose turn has come to the digest; releases the lock, which the caller holds, meanwhile."""
        digest = self._on_block_in_order
        if digest is None or self._digesting:
            return
        self._digesting = True
        try:
            while (block := self._blocks.get(self._watermark)) is not None and block.ready:
                block.pins += 1
                self._lock.release()
                try:
                    digest(block.view)
                finally:
                    self._lock.acquire()
                    block.pins -= 1
                self._watermark += 1
                if self._watermark >= self._catch_up:
                    self._catch_up_first = False
                self._work.notify_all()
                self._ready.notify_all()
        finally:
            self._digesting = False

    # --- loaders ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._threads or self._closed:
            return
        for number in range(self._connections):
            thread = threading.Thread(target=self._load, name=f"window-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _load(self) -> None:
        with self._lock:
            try:
                while True:
                    while (block := self._begin()) is None:
                        if self._closed or self._broken is not None:
                            return
                        self._work.wait()
                    self._lock.release()
                    try:
                        self._fetch(block.index * self.block_size, block.view)
                    finally:
                        self._lock.acquire()
                    block.ready = True
                    self.fetched += len(block.view)
                    self._clock += 1
                    block.used = self._clock
                    self._ready.notify_all()
                    self._advance()
            except CdiError as error:
                self._break(error)
            except BaseException as defect:
                self._break(InternalError(f"failed to fetch the image: {defect!r}"))
                if not isinstance(defect, Exception):
                    raise

    def _break(self, error: CdiError) -> None:
        """Record the permanent failure of `fetch` and wake all waiting threads."""
        if self._broken is None:
            self._broken = error
        self._ready.notify_all()
        self._work.notify_all()

    def _begin(self) -> Block | None:
        """Return the next block to load, with its buffer; None if there is no block or no buffer for now."""
        if self._closed or self._broken is not None:
            return None
        for index, urgent in self._candidates():
            buffer = self._buffer(index, urgent=urgent)
            if buffer is None:
                return None
            length = min(self.block_size, self.length - index * self.block_size)
            block = self._blocks[index] = Block(index, buffer, length)
            return block
        return None

    def _candidates(self) -> Sequence[tuple[int, bool]]:
        """Return the first missing block by priority, and whether it blocks a reader or the digest."""
        if self._catch_up_first:
            for index in range(self._watermark, self._watermark_reach()):
                if index not in self._blocks:
                    return ((index, True),)
        for index in self._waiters:
            if index not in self._blocks:
                return ((index, True),)
        for index in range(self._watermark, self._watermark_reach()):
            if index not in self._blocks:
                return ((index, index == self._watermark),)
        for ahead in self._ahead:
            for index in ahead:
                if index not in self._blocks:
                    return ((index, False),)
        return ()

    def _watermark_reach(self) -> int:
        """Return the end of the blocks to load for the digest now, limited by the number of buffers."""
        return min(self._catch_up, self._watermark + self._depth)

    def _buffer(self, index: int, *, urgent: bool) -> memoryview | None:
        if self._buffers < self._capacity:
            self._buffers += 1
            return memoryview(mmap.mmap(-1, self.block_size))
        victim = self._victim(index, urgent=urgent)
        if victim is None:
            return None
        del self._blocks[victim.index]
        victim.view.release()
        return victim.buffer

    def _victim(self, wanted: int, *, urgent: bool) -> Block | None:
        """Return the block to evict.

        Blocks that were read and digested are evicted first, then read ones furthest from the watermark, then unused
        readahead. Blocks that a reader is expected to need are evicted only for one that waits.
        """
        best: Block | None = None
        best_rank = (9, 0)
        expected = [ahead for ahead in self._ahead if ahead]
        for block in self._blocks.values():
            if not block.ready or block.pins or block.index in self._waiters:
                continue
            digested = self._on_block_in_order is None or block.index < self._watermark
            needed = not digested and block.index < max(self._catch_up, self._watermark + self._depth)
            if needed and not (urgent and block.index > wanted):
                # The digest needs it soon, so evicting it means fetching it again: readers that outrun the digest wait.
                continue
            if block.touched:
                rank = (0, block.used) if digested else (1, -block.index)
            elif any(block.index in ahead for ahead in expected):
                if not urgent:
                    continue
                rank = (3, -block.index)
            else:
                rank = (2, block.used)
            if needed:
                rank = (4, -block.index)
            if rank < best_rank:
                best, best_rank = block, rank
        return best

    # --- end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop loading and wake every reader with `Interrupted`.

        Waits for running calls of `fetch`, which must be ended separately (the reader's `abort`).
        """
        with self._lock:
            self._closed = True
            self._ready.notify_all()
            self._work.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
