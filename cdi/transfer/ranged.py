"""The fast path: pieces of a file fetched side by side, each decoded and written by the thread that fetched it.

Nothing is handed from thread to thread, so a byte is touched by one processor while it is warm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from cdi.api.errors import Interrupted
from cdi.image.qcow2map import Piece
from cdi.target.base import ALIGNMENT
from cdi.target.buffer import aligned_buffer
from cdi.transfer.fetch import Fetcher
from cdi.transfer.watermark import Watermark

PIECE_SIZE = 4 << 20

Handler = Callable[[Piece, memoryview], None]


def run_ranged(
    fetcher: Fetcher,
    pieces: Iterable[Piece],
    watermark: Watermark,
    handlers: Callable[[], Handler],
    *,
    connections: int,
) -> None:
    """Fetch every piece, hand it to a handler and then to the watermark.

    `handlers` makes one handler for each thread.  The view that a handler gets begins at ``piece.start``, and where
    that is a multiple of `ALIGNMENT` so is its memory.  The first failure ends the others and is raised.
    """
    numbered = enumerate(pieces)
    lock = threading.Lock()
    stopped = threading.Event()

    def work() -> None:
        handle = handlers()
        buffer = aligned_buffer(PIECE_SIZE + ALIGNMENT)
        try:
            while not stopped.is_set():
                with lock:
                    index, piece = next(numbered, (-1, None))
                if piece is None:
                    return
                pad = piece.start % ALIGNMENT
                size = pad + piece.fetch - piece.start
                if size > len(buffer):
                    buffer = aligned_buffer(size)
                view = buffer[pad:size]
                fetcher.fill(piece.start, view)
                handle(piece, view)
                watermark.complete(index, view[: piece.stop - piece.start], piece.stop)
        except BaseException:
            stopped.set()
            watermark.fail()
            fetcher.abort()
            raise

    with ThreadPoolExecutor(connections, "range") as pool:
        futures = [pool.submit(work) for _ in range(connections)]
    failures = [failure for future in futures if (failure := future.exception()) is not None]
    # The others were only told to stop; the one that is no interruption is the cause.
    failures.sort(key=lambda failure: isinstance(failure, Interrupted))
    if failures:
        raise failures[0]
