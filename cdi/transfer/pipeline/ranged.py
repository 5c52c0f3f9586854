"""Parallel range requests: each thread fetches a piece of the file, decodes it and writes it.

No data is passed between threads, so each byte is processed by one processor while it is in the cache.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from cdi.api.errors import Interrupted
from cdi.api.job import FileTargetSpec
from cdi.image.block_map import FileChunk
from cdi.target.base import ALIGNMENT, Target
from cdi.target.buffer import aligned_buffer
from cdi.transfer.context import ImportContext
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark

CHUNK_SIZE = 4 << 20
MIN_CHUNK = 1 << 20
"""Minimum size in bytes of a piece, used if many are fetched at a time."""
MEMORY = 88 << 20
"""Memory limit in bytes for all pieces in flight.

The rest of a worker's 192 MiB is for the interpreter and a map of a million extents.
"""
_POLL_INTERVAL = 0.25
"""Maximum time in seconds until a changed limit takes effect."""

Handler = Callable[[FileChunk, memoryview], None]
Cut = Callable[[int, int], Iterator[FileChunk]]
"""Function of an offset, which is the ``stop`` of an earlier piece, and a size: yields pieces of about that size."""


def fit_connections(wanted: int, beside: int) -> tuple[int, int]:
    """Fit connections into `MEMORY`.

    Args:
        wanted: Desired number of connections.
        beside: Bytes of memory that each needs in addition to its piece.

    Returns:
        The number of connections, and the size of their pieces in bytes.
    """
    connections = max(1, min(wanted, MEMORY // (MIN_CHUNK + beside)))
    size = min(CHUNK_SIZE, MEMORY // connections - beside)
    return connections, max(ALIGNMENT, size // ALIGNMENT * ALIGNMENT)


def run_ranged(
    reader: ResumingReader,
    cut: Cut,
    watermark: Watermark,
    handlers: Callable[[], Handler],
    *,
    connections: int,
    overhead_bytes: int,
) -> None:
    """Fetch every piece from the watermark on, pass it to a handler, and then to the watermark.

    The first failure stops the other threads and is raised.

    Args:
        reader: The source.
        cut: Divides the file into pieces.
        watermark: Tracks the progress.
        handlers: Creates a handler for each thread. The handler's view begins at ``piece.start``; if that is a multiple
            of `ALIGNMENT`, so is the view's memory address.
        connections: Planned number of connections. A limit that is set during the transfer replaces it, in both
            directions, as far as `fit_connections` has memory.
        overhead_bytes: Maximum memory of a handler in bytes.
    """
    crew = _RangeWorkers(reader, cut, watermark, handlers, connections, overhead_bytes)
    try:
        crew.run()
    finally:
        crew.end()
    if crew.failures:
        # The first failure interrupts the other threads, so the cause is the one that is not an interruption.
        raise min(crew.failures, key=lambda failure: isinstance(failure, Interrupted))


class RangedPipeline(ABC):
    """Import of a file with parallel range requests, which resumes from the watermark of an earlier attempt."""

    length: int
    """Size of the file in bytes."""

    @abstractmethod
    def transfer(self, reader: ResumingReader, target: Target, watermark: Watermark, connections: int) -> None:
        """Fetch the file from the watermark on and write the disk; `connections` is their planned number."""

    def check_room(self, target: FileTargetSpec) -> None:  # noqa: B027 - only some formats know how much data they hold
        """Raise `TargetFull` if the volume has too little space for the image's data."""

    def resume(self, context: ImportContext) -> int | None:
        """Return the offset in bytes at which to resume; None to begin at the start."""
        return context.resume_point()

    def watermark(self, context: ImportContext, start: int) -> Watermark:
        """Return the watermark of the transfer, which begins at the byte `start`."""
        return context.watermark(start)

    def run(self, context: ImportContext) -> int:
        """Resume or begin the import, and return the size of the disk in bytes."""
        disk_size, meter = context.plan.disk_size, context.control.meter
        assert disk_size is not None
        start = self.resume(context)
        if start is None:
            if isinstance(context.job.target, FileTargetSpec):
                self.check_room(context.job.target)
            context.prepare_target()
            meter.restart("")
        meter.phase = "transferring"
        with self.watermark(context, start or 0) as watermark:
            self.transfer(context.reader, context.target, watermark, context.plan.connections)
        meter.advance(self.length)
        return disk_size


class _RangeWorkers:
    """The worker threads, whose number follows the connection limit."""

    def __init__(
        self,
        reader: ResumingReader,
        cut: Cut,
        watermark: Watermark,
        handlers: Callable[[], Handler],
        connections: int,
        beside: int,
    ) -> None:
        self.failures: list[BaseException] = []
        self._reader = reader
        self._cut = cut
        self._watermark = watermark
        self._handlers = handlers
        self._planned = connections
        self._beside = beside
        self._turn = threading.Condition()
        """Lock for the fields below; notified when a thread ends."""
        self._threads: set[threading.Thread] = set()
        self._finished: list[threading.Thread] = []
        self._stopped = False
        self._numbers = 0
        self._position = watermark.value
        self._size = 0
        self._pieces: Iterator[FileChunk] = iter(())
        self._exhausted = False

    def run(self) -> None:
        """Run threads until every piece is done, or one has failed."""
        with self._turn:
            while not (self._stopped or (self._exhausted and not self._threads)):
                wanted, _ = self._share()
                while not self._exhausted and len(self._threads) < wanted:
                    thread = threading.Thread(target=self._work, name=f"range-{len(self._threads)}", daemon=True)
                    thread.start()
                    self._threads.add(thread)
                self._turn.wait(_POLL_INTERVAL)
                self._join_finished()

    def end(self) -> None:
        """Stop all threads and wait for them."""
        with self._turn:
            self._stopped = True
            while self._threads:
                # Repeat it: a thread may have been about to open a reader.
                self._stop()
                self._turn.wait(_POLL_INTERVAL)
            self._join_finished()

    def _join_finished(self) -> None:
        for thread in self._finished:
            thread.join()
        self._finished.clear()

    def _share(self) -> tuple[int, int]:
        return fit_connections(self._reader.connections(self._planned), self._beside)

    def _stop(self) -> None:
        self._watermark.abort()
        self._reader.abort()

    def _next(self) -> tuple[int, FileChunk, int] | None:
        """Return the next piece with its number and the current piece size; None if this thread has to end."""
        with self._turn:
            wanted, size = self._share()
            if self._stopped or len(self._threads) > wanted:
                return None
            if size != self._size:
                self._size, self._pieces = size, self._cut(self._position, size)
            piece = next(self._pieces, None)
            if piece is None:
                self._exhausted = True
                return None
            self._position = piece.stop
            self._numbers += 1
            return self._numbers - 1, piece, size

    def _work(self) -> None:
        try:
            self._work_loop(self._handlers())
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that waits
            with self._turn:
                self.failures.append(failure)
                self._stopped = True
            self._stop()
        finally:
            with self._turn:
                me = threading.current_thread()
                self._threads.discard(me)
                self._finished.append(me)
                self._turn.notify_all()

    def _work_loop(self, handle: Handler) -> None:
        buffer, made_for = memoryview(b""), 0
        while (given := self._next()) is not None:
            index, piece, size = given
            pad = piece.start % ALIGNMENT
            needed = pad + piece.fetch - piece.start
            if needed > len(buffer) or size != made_for:
                # Release the old buffer before the new one is allocated.
                buffer = view = memoryview(b"")
                buffer, made_for = aligned_buffer(max(needed, size + ALIGNMENT)), size
            view = buffer[pad:needed]
            self._reader.read_range_into(piece.start, view)
            handle(piece, view)
            self._watermark.commit(index, view[: piece.stop - piece.start], piece.stop)
