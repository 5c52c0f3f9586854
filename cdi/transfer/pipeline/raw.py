"""Import of raw images, of which only data other than zeros is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from queue import SimpleQueue

from cdi.api.errors import TargetTooSmall
from cdi.codec.base import Buffer
from cdi.image.block_map import FileChunk
from cdi.image.sizes import MAX_DISK, SECTOR
from cdi.target.base import Target
from cdi.target.buffer import aligned_buffer, write_sparse
from cdi.transfer.context import ImportContext
from cdi.transfer.hashed_stream import HashedStream
from cdi.transfer.pipeline.ranged import RangedPipeline, run_ranged
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark

_BLOCK = 2 << 20
_WRITERS = 3


class RawRanged(RangedPipeline):
    """Import of a raw image with range requests."""

    def __init__(self, length: int, payload: int) -> None:
        """Describe a file of `length` bytes; its first `payload` bytes are the disk."""
        self.length = length
        self._payload = payload

    def transfer(self, reader: ResumingReader, target: Target, watermark: Watermark, connections: int) -> None:
        def cut(begin: int, size: int) -> Iterator[FileChunk]:
            for start in range(begin, self.length, size):
                stop = min(self.length, start + size)
                yield FileChunk(start, stop, stop, 0, 0)

        def handle(piece: FileChunk, view: memoryview) -> None:
            inside = min(piece.stop, self._payload) - piece.start
            if inside > 0:
                write_sparse(target, view[:inside], piece.start)

        run_ranged(reader, cut, watermark, lambda: handle, connections=connections, overhead_bytes=0)


class RawStream:
    """Import of a raw image that is read once, in order."""

    def __init__(self, stream: Iterator[Buffer], content: HashedStream | None, *, resumed: bool = False) -> None:
        """Prepare the import of `stream`.

        Args:
            stream: The image, from the start of `content`.
            content: The source's content, if it is the image itself: a later attempt can then resume it.
            resumed: Whether the target holds what precedes `stream`.
        """
        self._stream = stream
        self._content = content
        self._resumed = resumed

    def run(self, context: ImportContext) -> int:
        target, size, result = context.target, context.plan.disk_size, context.result
        if not self._resumed:
            context.prepare_target()
        context.control.meter.phase = "transferring"
        limit = size if size is not None else target.capacity or MAX_DISK
        trim = _Trim()
        facts = context.reader.facts
        # The last sector may be the footer of a fixed VHD.
        if self._content is not None and facts.min_length - SECTOR > limit:
            # What its client calls the size of the image, even if the last bytes should turn out to be a form's.
            size_sent = facts.max_length or facts.min_length
            raise TargetTooSmall(f"the image has {size_sent} bytes, but the disk may have only {limit}")
        with self._watermark(context) or nullcontext() as watermark:
            grow = target.resize if size is None else None
            received = raw_stream(self._stream, target, limit=limit, grow=grow, trim=trim, watermark=watermark)
        result.virtual_size = received
        if trim.has_vhd_footer:
            result.format = "vpc"
            if context.job.size is None and target.capacity is None:
                # The disk was sized by the length of the content, footer included.
                size = None
        if size is not None and size > received and (trim.has_vhd_footer or not target.reads_zero):
            target.zero(received, size - received)
        if size is None:
            size = -(-received // SECTOR) * SECTOR
            target.resize(size)
        return size

    def _watermark(self, context: ImportContext) -> Watermark | None:
        return None if self._content is None else context.stream_watermark(self._content)


class _Trim:
    """Finds the footer of a fixed VHD, which is otherwise a raw disk."""

    def __init__(self) -> None:
        self.has_vhd_footer = False

    def __call__(self, tail: memoryview, total: int) -> int:
        """Return the number of trailing bytes of a content of `total` bytes that ends with `tail`."""
        # Needed once, at the end of a stream.
        from cdi.image.formats.vpc import fixed_payload

        payload = fixed_payload(bytes(tail[-SECTOR:]), total)
        if payload is None:
            return 0
        self.has_vhd_footer = True
        return total - payload


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
        trim: Called with the end of the content (at least one sector, if there are as many) and the content's length;
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
            before = b"" if waiting is None else bytes(waiting[-SECTOR:])
            size -= trim(memoryview(before + current[:filled]), total)
        if waiting is not None and size > offset - _BLOCK:
            submit(waiting, min(_BLOCK, size - offset + _BLOCK), offset - _BLOCK)
        if size > offset:
            submit(current, size - offset, offset)
        for future in busy:
            future.result()
    return size
