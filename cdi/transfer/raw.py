"""Raw images: write what is not zero where it belongs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from cdi.api.errors import TargetTooSmall
from cdi.codec.base import Buffer
from cdi.image.qcow2map import Piece
from cdi.target.base import Target
from cdi.target.buffer import aligned_buffer
from cdi.transfer.clusters import write_sparse
from cdi.transfer.fetch import Fetcher
from cdi.transfer.ranged import Handler, run_ranged
from cdi.transfer.watermark import Watermark

_BLOCK = 2 << 20
_WRITERS = 3
_TAIL = 1024


def raw_ranged(
    fetcher: Fetcher,
    target: Target,
    watermark: Watermark,
    *,
    length: int,
    payload: int,
    connections: int,
) -> None:
    """Fetch all `length` bytes from the watermark on; the first `payload` of them are the disk."""

    def cut(begin: int, size: int) -> Iterator[Piece]:
        for start in range(begin, length, size):
            stop = min(length, start + size)
            yield Piece(start, stop, stop, 0, 0)

    def handlers() -> Handler:
        def handle(piece: Piece, view: memoryview) -> None:
            inside = min(piece.stop, payload) - piece.start
            if inside > 0:
                write_sparse(target, view[:inside], piece.start)

        return handle

    run_ranged(fetcher, cut, watermark, handlers, connections=connections, beside=0)


def raw_stream(
    pieces: Iterator[Buffer],
    target: Target,
    *,
    limit: int,
    grow: Callable[[int], None] | None = None,
    trim: Callable[[memoryview, int], int] | None = None,
    watermark: Watermark | None = None,
) -> int:
    """Write an ordered stream; gives the number of bytes that the disk has of it.

    `watermark` is told of every block that is written, and says where in the content the stream begins.

    `trim` sees the end of the content (1024 bytes at least where there are as many) and its whole length, and says how
    many bytes at the end are not the disk's; of a great many, some may have been written.  Raises `TargetTooSmall` as
    soon as more than `limit` bytes have come.
    """
    free: SimpleQueue[memoryview] = SimpleQueue()
    # Those that are written, one to be filled, and one that waits.
    for _ in range(_WRITERS + 3):
        free.put(aligned_buffer(_BLOCK))
    busy: deque[Future[None]] = deque()
    begin = 0 if watermark is None else watermark.value

    def write(buffer: memoryview, size: int, at: int, index: int) -> None:
        try:
            write_sparse(target, buffer[:size], at)
            if watermark is not None:
                watermark.complete(index, buffer[:size], at + size)
        except BaseException:
            if watermark is not None:
                watermark.fail()
            raise
        finally:
            free.put(buffer)

    with ThreadPoolExecutor(_WRITERS, "write") as pool:

        def hand_over(buffer: memoryview, size: int, at: int) -> None:
            if at + size > limit:
                raise TargetTooSmall(f"the image has more than the {limit} bytes that the disk may have")
            if grow is not None:
                grow(at + size)
            busy.append(pool.submit(write, buffer, size, at, (at - begin) // _BLOCK))
            while len(busy) > _WRITERS:
                busy.popleft().result()

        current, filled, offset = free.get(), 0, begin
        # A full block waits until the one after it is full too, so that the end of the content is always at hand.
        waiting: memoryview | None = None
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if filled == _BLOCK:
                    if waiting is not None:
                        hand_over(waiting, _BLOCK, offset - _BLOCK)
                    offset, filled, waiting, current = offset + filled, 0, current, free.get()
                count = min(len(view), _BLOCK - filled)
                current[filled : filled + count] = view[:count]
                filled += count
                view = view[count:]
        total = offset + filled
        size = total
        if trim is not None:
            before = b"" if waiting is None else bytes(waiting[-_TAIL:])
            size -= trim(memoryview(before + current[:filled]), total)
        if waiting is not None and size > offset - _BLOCK:
            hand_over(waiting, min(_BLOCK, size - offset + _BLOCK), offset - _BLOCK)
        if size > offset:
            hand_over(current, size - offset, offset)
        for future in busy:
            future.result()
    return size
