"""The fast path: pieces of a file fetched side by side, each decoded and written by the thread that fetched it.

Nothing is handed from thread to thread, so a byte is touched by one processor while it is warm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from cdi.api.errors import Interrupted
from cdi.image.qcow2map import Piece
from cdi.target.base import ALIGNMENT
from cdi.target.buffer import aligned_buffer
from cdi.transfer.fetch import Fetcher
from cdi.transfer.watermark import Watermark

PIECE_SIZE = 4 << 20
SMALLEST = 1 << 20
"""What a piece shrinks to where many are fetched at a time, bytes."""
MEMORY = 88 << 20
"""For all pieces that are under way, bytes: it leaves the interpreter and a map of a million extents their part of the
192 MiB of a worker."""
_LOOK_SECONDS = 0.25
"""The longest until a new limit is seen."""

Handler = Callable[[Piece, memoryview], None]
Cut = Callable[[int, int], Iterator[Piece]]
"""Pieces from an offset (a former piece's ``stop``) on, of about so many bytes."""


def share(wanted: int, beside: int) -> tuple[int, int]:
    """How many connections there may be of those that are `wanted`, and of how many bytes their pieces then are.

    `beside` are the bytes of memory that each needs beside its piece.
    """
    connections = max(1, min(wanted, MEMORY // (SMALLEST + beside)))
    size = min(PIECE_SIZE, MEMORY // connections - beside)
    return connections, max(ALIGNMENT, size // ALIGNMENT * ALIGNMENT)


def run_ranged(
    fetcher: Fetcher,
    cut: Cut,
    watermark: Watermark,
    handlers: Callable[[], Handler],
    *,
    connections: int,
    beside: int,
) -> None:
    """Fetch every piece from the watermark on, hand it to a handler and then to the watermark.

    `connections` are those that were planned for; a limit that is set meanwhile goes before it, up and down, as far as
    `share` has memory.  `handlers` makes one handler for each thread, of `beside` bytes at most.  The view that a
    handler gets begins at ``piece.start``, and where that is a multiple of `ALIGNMENT` so is its memory.  The first
    failure ends the others and is raised.
    """
    crew = _Crew(fetcher, cut, watermark, handlers, connections, beside)
    try:
        crew.run()
    finally:
        crew.end()
    if crew.failures:
        # The others were only told to stop; the one that is no interruption is the cause.
        raise min(crew.failures, key=lambda failure: isinstance(failure, Interrupted))


class _Crew:
    """The threads, which come and go with the limit."""

    def __init__(
        self,
        fetcher: Fetcher,
        cut: Cut,
        watermark: Watermark,
        handlers: Callable[[], Handler],
        connections: int,
        beside: int,
    ) -> None:
        self.failures: list[BaseException] = []
        self._fetcher = fetcher
        self._cut = cut
        self._watermark = watermark
        self._handlers = handlers
        self._planned = connections
        self._beside = beside
        self._turn = threading.Condition()
        """Guards what follows; somebody left."""
        self._threads: set[threading.Thread] = set()
        self._leaving: list[threading.Thread] = []
        self._stopped = False
        self._numbers = 0
        self._position = watermark.value
        self._size = 0
        self._pieces: Iterator[Piece] = iter(())
        self._exhausted = False

    def run(self) -> None:
        """Until every piece is done, or one failed."""
        with self._turn:
            while not (self._stopped or (self._exhausted and not self._threads)):
                wanted, _ = self._share()
                while not self._exhausted and len(self._threads) < wanted:
                    thread = threading.Thread(target=self._work, name=f"range-{len(self._threads)}", daemon=True)
                    thread.start()
                    self._threads.add(thread)
                self._turn.wait(_LOOK_SECONDS)
                self._bury()

    def end(self) -> None:
        """Let nothing go on."""
        with self._turn:
            self._stopped = True
            while self._threads:
                # Again and again: one may have been about to read.
                self._stop()
                self._turn.wait(_LOOK_SECONDS)
            self._bury()

    def _bury(self) -> None:
        for thread in self._leaving:
            thread.join()
        self._leaving.clear()

    def _share(self) -> tuple[int, int]:
        return share(self._fetcher.connections(self._planned), self._beside)

    def _stop(self) -> None:
        self._watermark.fail()
        self._fetcher.abort()

    def _next(self) -> tuple[int, Piece, int] | None:
        """The next piece, with its number and the size that it was cut by; None where this thread is not needed."""
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
            self._deal(self._handlers())
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that waits
            with self._turn:
                self.failures.append(failure)
                self._stopped = True
            self._stop()
        finally:
            with self._turn:
                me = threading.current_thread()
                self._threads.discard(me)
                self._leaving.append(me)
                self._turn.notify_all()

    def _deal(self, handle: Handler) -> None:
        buffer, made_for = memoryview(b""), 0
        while (given := self._next()) is not None:
            index, piece, size = given
            pad = piece.start % ALIGNMENT
            needed = pad + piece.fetch - piece.start
            if needed > len(buffer) or size != made_for:
                # The old one is let go of first.
                buffer = view = memoryview(b"")
                buffer, made_for = aligned_buffer(max(needed, size + ALIGNMENT)), size
            view = buffer[pad:needed]
            self._fetcher.fill(piece.start, view)
            handle(piece, view)
            self._watermark.complete(index, view[: piece.stop - piece.start], piece.stop)
