"""Windows of a stream: one fills while a small pool of threads decodes the extents of those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from cdi.codec.base import Buffer
from cdi.image.block_map import RUN_LIMIT, Extent
from cdi.target.base import ALIGNMENT, Target
from cdi.target.buffer import aligned_buffer
from cdi.transfer.pipeline.cluster_writer import ClusterWriter

WINDOW_SIZE = 4 << 20
MIN_CARRY = RUN_LIMIT
"""Minimum number of bytes that can be carried over to the next window: the largest stored extent."""
_WINDOWS: Final = 4
_DECODERS: Final = 4
"""Number of threads; it exceeds the number of processors because each thread waits for its own writes."""


class WindowedDecoder(ABC):
    """Decoder that consumes an image in order and writes the disk."""

    def __init__(self, target: Target, block_size: int) -> None:
        """Write to `target`; `block_size` is the number of bytes of the disk in an encoded extent."""
        self._target = target
        self._block_size = block_size
        self._writers: deque[ClusterWriter] = deque(ClusterWriter(target, block_size) for _ in range(_DECODERS))
        self._base = 0
        """Offset of the window in the file, in bytes."""

    @property
    def scratch(self) -> int:
        """Bytes that went through scratch space."""
        return 0

    def run(self, pieces: Iterator[Buffer]) -> None:
        """Consume the whole stream; raise `ImageError` if it is invalid, and `TargetError` if it cannot be written."""
        with ThreadPoolExecutor(_DECODERS, "decode") as pool:
            self._consume(pieces, pool)
        if not self._target.reads_zero:
            for offset, size in self._holes():
                self._target.zero(offset, size)

    @abstractmethod
    def _window(self, window: memoryview, pool: ThreadPoolExecutor, *, final: bool) -> tuple[int, list[Future[None]]]:
        """Process `window`, the file's bytes from `_base`; `final` tells that the file ends with it.

        Returns:
            The number of bytes that are processed, and the jobs that still read from the window.
        """

    @abstractmethod
    def _finish(self, total: int) -> None:
        """Process what remains after a stream of `total` bytes; raise `ContentTruncated` if data is missing."""

    @abstractmethod
    def _holes(self) -> Iterator[tuple[int, int]]:
        """Return the runs of the disk that hold no data as (offset, length), after the whole stream."""

    def _consume(self, pieces: Iterator[Buffer], pool: ThreadPoolExecutor) -> None:
        # The incomplete end of a window, at most one extent, is copied to the start of the next one. Padding before it
        # gives memory the alignment of the file offset, so that data can be written with direct I/O.
        carry = max(MIN_CARRY, 2 * self._block_size) + ALIGNMENT
        free = deque(aligned_buffer(carry + WINDOW_SIZE) for _ in range(_WINDOWS))
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
                    self._await_oldest(busy, free)
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
            self._await_oldest(busy, free)
        self._finish(self._base + filled - start)

    def _await_oldest(self, busy: deque[tuple[list[Future[None]], memoryview]], free: deque[memoryview]) -> None:
        jobs, buffer = busy.popleft()
        for job in jobs:
            job.result()
        free.append(buffer)

    def _dispatch(self, batch: list[tuple[Extent, memoryview]], pool: ThreadPoolExecutor) -> list[Future[None]]:
        share = -(-len(batch) // _DECODERS)
        return [pool.submit(self._decode, batch[at : at + share]) for at in range(0, len(batch), share or 1)]

    def _decode(self, batch: list[tuple[Extent, memoryview]]) -> None:
        # There are as many writers as threads, so one is always free.
        writer = self._writers.popleft()
        try:
            for extent, data in batch:
                writer.write_extent(extent, data)
            writer.flush()
        finally:
            self._writers.append(writer)
