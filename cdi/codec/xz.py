"""Streaming decoder for xz that decodes blocks in parallel.

liblzma decodes about 60 MB/s on one core, which limits the import of an xz image. ``xz -T`` (the default since 5.6)
divides the content into blocks and writes their sizes into the block headers. Such blocks are extracted here and
decoded by several threads; the output keeps their order. Each block is passed to liblzma as a separate stream, with the
real header and a generated index and footer, so that liblzma verifies sizes and checksum. The real index and footer are
compared with the blocks that were read.

A block without sizes (``xz -T1``), or too large for the memory limit, is decoded while it is received. If its
compressed size is unknown, its end is found from the headers of its LZMA2 chunks.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import queue
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from cdi.api.errors import CdiError, ImageError
from cdi.codec.base import MAX_CHUNK, Buffer, trailing_data
from cdi.codec.cursor import BufferCursor
from cdi.codec.xz_format import (
    HEADER_SIZE,
    STREAM_MAGIC,
    BlockHeader,
    StreamHeader,
    damaged,
    format_number,
    parse_block_header,
    parse_footer,
    parse_number,
    parse_stream_header,
    stream_end,
)

IN_FLIGHT = 96 << 20
"""Memory limit in bytes for blocks that are decoded in parallel: input, output and dictionaries."""
MAX_THREADS = 8

_SLICE = 256 << 10
# Input is passed in slices because Python's decompressor object copies the input that it has not used.
_MAX_BLOCKS = 64
_OVERHEAD = 1 << 16
# Memory in bytes that a block needs in addition to its data.


class XzDecoder:
    """A `cdi.codec.base.Decoder` for xz."""

    def __init__(self, threads: int | None = None, in_flight: int = IN_FLIGHT) -> None:
        """Create a decoder.

        Args:
            threads: Number of threads; by default the number of processors available to this process.
            in_flight: Memory limit in bytes for blocks that are decoded in parallel.
        """
        self._threads = min(threads or len(os.sched_getaffinity(0)), MAX_THREADS)
        self._in_flight = in_flight

    def decode(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        feed = BufferCursor(pieces, "xz stream")
        with _Pool(self._threads, self._in_flight) as pool:
            try:
                yield from _streams(feed, pool)
            except ImageError:
                # Yield the blocks before the damage first; they are valid unless their own decoding fails.
                yield from pool.drain()
                raise
            yield from pool.drain()


def _streams(feed: BufferCursor, pool: _Pool) -> Iterator[Buffer]:
    while True:
        yield from _stream(feed, pool)
        padding = feed.skip_zeros()
        if not feed.window(1):
            # Between streams, padding must be a multiple of four bytes; at the end it may be the rest of a device.
            return
        head = feed.peek(len(STREAM_MAGIC))
        # If the content ends within the magic, it is a truncated stream, which the header's parser reports.
        if not STREAM_MAGIC.startswith(head):
            raise trailing_data(feed.name, head)
        if padding % 4:
            raise damaged("the padding between two streams is not a multiple of four bytes")


def _stream(feed: BufferCursor, pool: _Pool) -> Iterator[Buffer]:
    header = parse_stream_header(feed.take(HEADER_SIZE))
    seen = _IndexHash()
    while length := feed.take(1)[0]:
        raw = bytes((length,)) + feed.take(length * 4 + 3)
        block = parse_block_header(raw)
        cost = pool.cost(block)
        if cost is None:
            yield from pool.drain()
            yield from _decode_streaming(feed, header, block, seen)
        else:
            assert block.compressed is not None
            assert block.uncompressed is not None
            seen.add(len(raw) + block.compressed + header.check_size, block.uncompressed)
            yield from pool.make_room(cost)
            size = block.compressed + -block.compressed % 4 + header.check_size
            pool.submit(_BlockTask(header, block, feed.take(size), cost))
    _check_index(feed, header, seen)


# --- blocks that are decoded while they are received ------------------------------------------------------------


def _decode_streaming(
    feed: BufferCursor, header: StreamHeader, block: BlockHeader, seen: _IndexHash
) -> Iterator[Buffer]:
    one = _BlockDecoder(header, block)
    compressed = 0
    sizes = iter((block.compressed,)) if block.compressed is not None else _chunk_sizes(feed)
    for size in sizes:
        compressed += size
        for view in feed.views(size, _SLICE):
            yield from one.feed(view)
    yield from one.feed(feed.take(-compressed % 4 + header.check_size))
    yield from one.finish(compressed)
    seen.add(len(block.raw) + compressed + header.check_size, one.output_size)


def _chunk_sizes(feed: BufferCursor) -> Iterator[int]:
    """Yield the sizes in bytes of an LZMA2 stream's chunks, including their headers, up to and with the end mark.

    This follows liblzma's lzma2_decoder.c, the only description of the format.
    """
    while True:
        head = feed.peek(6)
        control = head[0] if head else 0
        if not control:
            yield 1
            return
        if control >= 0x80:
            # Two bytes hold the compressed size minus one; a properties byte follows if the state is reset.
            size = int.from_bytes(head[3:5], "big") + 1 + (6 if control >= 0xC0 else 5)
        elif control <= 2:
            size = int.from_bytes(head[1:3], "big") + 1 + 3
        else:
            raise damaged("an LZMA2 chunk has an unknown control byte")
        yield size


class _BlockDecoder:
    """Decoder of a single block, as a separate stream."""

    def __init__(self, header: StreamHeader, block: BlockHeader) -> None:
        self._header = header
        self._block = block
        self._lzma = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self.output_size = 0
        """Bytes of content decoded so far."""
        self._run(header.raw + block.raw)

    def feed(self, data: Buffer) -> Iterator[bytes]:
        output = self._run(data)
        while True:
            if output:
                self.output_size += len(output)
                yield output
            if self._lzma.needs_input or self._lzma.eof:
                return
            output = self._run(b"")

    def finish(self, compressed: int) -> Iterator[bytes]:
        """Check with liblzma that the block is complete, after its `compressed` bytes and its check were fed.

        Returns an empty iterator; raises `DecoderFailed` if the block is not complete.
        """
        unpadded = len(self._block.raw) + compressed + self._header.check_size
        end = stream_end(self._header, unpadded, self.output_size)
        for output in self.feed(end):
            raise damaged(f"a block has {len(output)} bytes more than its header says")
        if not self._lzma.eof or self._lzma.unused_data:
            raise damaged("invalid end of a block")
        return iter(())

    def _run(self, data: Buffer) -> bytes:
        try:
            return self._lzma.decompress(data, MAX_CHUNK)
        except (lzma.LZMAError, EOFError) as error:
            raise damaged(str(error)) from error


# --- blocks that are decoded in parallel ------------------------------------------------------------------------


class _BlockTask:
    """A complete block to be decoded by a thread."""

    def __init__(self, header: StreamHeader, block: BlockHeader, data: bytes, cost: int) -> None:
        self.header = header
        self.block = block
        self.data = data
        self.cost = cost
        self.pieces: queue.SimpleQueue[bytes | CdiError | Exception | None] = queue.SimpleQueue()
        """Queue of the decoded content, followed by None or the error."""


class _Pool:
    """Pool of decoding threads that yields its blocks in the order of the content."""

    def __init__(self, threads: int, in_flight: int) -> None:
        self._wanted = threads
        self._limit = in_flight
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[_BlockTask | None] = queue.SimpleQueue()
        self._order: deque[_BlockTask] = deque()
        self._used = 0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._order.clear()

    def cost(self, block: BlockHeader) -> int | None:
        """Return the memory in bytes for the block while in flight; None if it must be decoded while it is received."""
        if self._wanted < 2 or block.compressed is None or block.uncompressed is None:
            return None
        cost = block.compressed + block.uncompressed + min(block.dictionary, block.uncompressed) + _OVERHEAD
        # If two such blocks exceed the limit, there is nothing to decode in parallel.
        return cost if cost <= self._limit // 2 else None

    def submit(self, job: _BlockTask) -> None:
        self._used += job.cost
        self._order.append(job)
        self._jobs.put(job)
        if len(self._threads) < min(self._wanted, len(self._order)):
            thread = threading.Thread(target=self._work, name="xz", daemon=True)
            self._threads.append(thread)
            thread.start()

    def make_room(self, cost: int) -> Iterator[Buffer]:
        """Yield content in order until a block of `cost` bytes can be added."""
        while self._order and (self._used + cost > self._limit or len(self._order) >= _MAX_BLOCKS):
            yield from self._first()

    def drain(self) -> Iterator[Buffer]:
        while self._order:
            yield from self._first()

    def _first(self) -> Iterator[Buffer]:
        job = self._order.popleft()
        while (piece := job.pieces.get()) is not None:
            if isinstance(piece, Exception):
                # Drop the blocks after a damaged one: their output must not follow a gap.
                self._order.clear()
                raise piece
            yield piece
        self._used -= job.cost

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._decode(job)
            except Exception as error:  # noqa: BLE001 - it is raised where the content is taken
                job.pieces.put(error)

    def _decode(self, job: _BlockTask) -> None:
        one = _BlockDecoder(job.header, job.block)
        data = memoryview(job.data)
        for at in range(0, len(data), _SLICE):
            for piece in one.feed(data[at : at + _SLICE]):
                if self._stop.is_set():
                    return
                job.pieces.put(piece)
        assert job.block.compressed is not None
        for piece in one.finish(job.block.compressed):
            job.pieces.put(piece)
        job.pieces.put(None)


# --- the index --------------------------------------------------------------------------------------------------


class _IndexHash:
    """Hash over the sizes of a stream's blocks, so that any number of them takes constant memory."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def add(self, unpadded: int, uncompressed: int) -> None:
        self._hash.update(format_number(unpadded) + format_number(uncompressed))
        self.count += 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _IndexHash):
            return NotImplemented
        return self.count == other.count and self._hash.digest() == other._hash.digest()

    __hash__ = None  # type: ignore[assignment]  # it changes


def _check_index(feed: BufferCursor, header: StreamHeader, seen: _IndexHash) -> None:
    """Compare the index and the footer with the blocks read (section 4); raise `DecoderFailed` if they differ."""
    crc, size, found = zlib.crc32(b"\0"), 1, _IndexHash()

    def number() -> int:
        nonlocal crc, size
        raw = b""
        while True:
            raw += feed.take(1)
            if raw[-1] < 0x80 or len(raw) == 9:
                break
        crc, size = zlib.crc32(raw, crc), size + len(raw)
        return parse_number(raw, 0, len(raw))[0]

    if number() != seen.count:
        raise damaged("the block count in the index does not match the stream")
    for _ in range(seen.count):
        unpadded = number()
        found.add(unpadded, number())
    padding = feed.take(-size % 4)
    if any(padding) or found != seen:
        raise damaged("the index does not match the blocks")
    if zlib.crc32(padding, crc) != int.from_bytes(feed.take(4), "little"):
        raise damaged("the index has a wrong CRC")
    if parse_footer(feed.take(HEADER_SIZE), header) != size + len(padding) + 4:
        raise damaged("the footer does not match the index")
