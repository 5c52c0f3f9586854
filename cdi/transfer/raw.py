"""Import of raw images, of which only data other than zeros is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from cdi.api.errors import TargetTooSmall
from cdi.codec.base import Buffer
from cdi.image.qcow2_map import FileChunk
from cdi.target.base import Target
from cdi.target.buffer import aligned_buffer
from cdi.transfer.cluster_writer import write_sparse
from cdi.transfer.ranged import Handler, run_ranged
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark

_BLOCK = 2 << 20
_WRITERS = 3
_TAIL = 1024


def raw_ranged(
    fetcher: ResumingReader,
    target: Target,
    watermark: Watermark,
    *,
    length: int,
    payload: int,
    connections: int,
) -> None:
    """Fetch the file of `length` bytes from the watermark on; its first `payload` bytes are the disk."""

    def cut(begin: int, size: int) -> Iterator[FileChunk]:
        for start in range(begin, length, size):
            stop = min(length, start + size)
            yield FileChunk(start, stop, stop, 0, 0)

    def handlers() -> Handler:
        def handle(piece: FileChunk, view: memoryview) -> None:
            inside = min(piece.stop, payload) - piece.start
            if inside > 0:
                write_sparse(target, view[:inside], piece.start)

        return handle

    run_ranged(fetcher, cut, watermark, handlers, connections=connections, overhead_bytes=0)


def raw_stream(
    pieces: Iterator[Buffer],
    target: Target,
    *,
    limit: int,
    grow: Callable[[int], None] | None = None,
    trim: Callable[[memoryview, int], int] | None = None,
    watermark: Watermark | None = None,
) -> int:
    """Write a stream to the disk, and return the number of bytes that belong to the disk.

    Args:
        pieces: The stream.
        target: The disk.
        limit: Maximum size of the disk in bytes.
        grow: Called with the required size of the disk before each write.
        trim: Called with the end of the content (at least 1024 bytes, if there are as many) and the content's length;
            returns how many bytes at the end do not belong to the disk. If these are more than a block, some may
            have been written.
        watermark: Records every written block; its value is the offset at which the stream begins.

    Raises:
        TargetTooSmall: More than `limit` bytes were received.
    """
    free: SimpleQueue[memoryview] = SimpleQueue()
    # Buffers for the writers, for the block being filled, and for the one held back.
    for _ in range(_WRITERS + 3):
        free.put(aligned_buffer(_BLOCK))
    busy: deque[Future[None]] = deque()
    begin = 0 if watermark is None else watermark.value

    def write(buffer: memoryview, size: int, at: int, index: int) -> None:
        try:
            write_sparse(target, buffer[:size], at)
            if watermark is not None:
                watermark.commit(index, buffer[:size], at + size)
        except BaseException:
            if watermark is not None:
                watermark.abort()
            raise
        finally:
            free.put(buffer)

    with ThreadPoolExecutor(_WRITERS, "write") as pool:

        def submit(buffer: memoryview, size: int, at: int) -> None:
            if at + size > limit:
                raise TargetTooSmall(f"the image exceeds the {limit} bytes that the disk may have")
            if grow is not None:
                grow(at + size)
            busy.append(pool.submit(write, buffer, size, at, (at - begin) // _BLOCK))
            while len(busy) > _WRITERS:
                busy.popleft().result()

        current, filled, offset = free.get(), 0, begin
        # Hold back each full block until the next one is full too, so that `trim` can see the end of the content.
        waiting: memoryview | None = None
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if filled == _BLOCK:
                    if waiting is not None:
                        submit(waiting, _BLOCK, offset - _BLOCK)
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
            submit(waiting, min(_BLOCK, size - offset + _BLOCK), offset - _BLOCK)
        if size > offset:
            submit(current, size - offset, offset)
        for future in busy:
            future.result()
    return size
