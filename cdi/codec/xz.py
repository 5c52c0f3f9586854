"""xz, its blocks decoded at the same time even when they come as a stream.

liblzma's decoder gives some 60 MB/s on one core, so an xz image is bound by it.  ``xz -T`` (the default since 5.6)
cuts the content into blocks and notes their sizes in front of them: such blocks are cut out here and decoded by
several threads, in order of their content.  Each block is given to liblzma as a stream of its own, with the real
header before and an index and footer made for it behind, so that liblzma checks sizes and check sum; the real index
and footer are compared with what was seen.

A block without sizes (``xz -T1``), or too large to be kept, is decoded while it arrives.  Where its end is not known
beforehand it is found from the headers of its LZMA2 chunks.
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
from cdi.codec.base import PIECE, Buffer, trailing_data
from cdi.codec.feed import Feed
from cdi.codec.xzformat import (
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
"""The most memory for blocks that are decoded side by side, bytes: input, output and dictionaries."""
THREADS_MOST = 8

_SLICE = 256 << 10
# liblzma's Python object keeps a copy of input that it has not used.
_BLOCKS_MOST = 64
_OVERHEAD = 1 << 16
# What a block costs beside its bytes.


class XzDecoder:
    """Satisfies `cdi.codec.base.Decoder`."""

    def __init__(self, threads: int | None = None, in_flight: int = IN_FLIGHT) -> None:
        """`threads` is the number of processors that this process may use unless given."""
        self._threads = min(threads or len(os.sched_getaffinity(0)), THREADS_MOST)
        self._in_flight = in_flight

    def decode(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        feed = Feed(pieces, "xz stream")
        with _Pool(self._threads, self._in_flight) as pool:
            try:
                yield from _streams(feed, pool)
            except ImageError:
                # What was read before the fault is good as far as its blocks are.
                yield from pool.drain()
                raise
            yield from pool.drain()


def _streams(feed: Feed, pool: _Pool) -> Iterator[Buffer]:
    while True:
        yield from _stream(feed, pool)
        padding = feed.skip_zeros()
        if not feed.window(1) or feed.skip_form_end():
            # Padding is a multiple of four between streams; at the end it may come from a device's sectors.
            return
        head = feed.peek(len(STREAM_MAGIC))
        # Where it ends within the magic, it is a stream that was cut off.
        if not STREAM_MAGIC.startswith(head):
            raise trailing_data(feed.name, head)
        if padding % 4:
            raise damaged("the padding between two streams is no multiple of four bytes")


def _stream(feed: Feed, pool: _Pool) -> Iterator[Buffer]:
    header = parse_stream_header(feed.take(HEADER_SIZE))
    seen = _Records()
    while length := feed.take(1)[0]:
        raw = bytes((length,)) + feed.take(length * 4 + 3)
        block = parse_block_header(raw)
        cost = pool.cost(block)
        if cost is None:
            yield from pool.drain()
            yield from _decode_arriving(feed, header, block, seen)
        else:
            assert block.compressed is not None
            assert block.uncompressed is not None
            seen.add(len(raw) + block.compressed + header.check_size, block.uncompressed)
            yield from pool.make_room(cost)
            size = block.compressed + -block.compressed % 4 + header.check_size
            pool.submit(_Job(header, block, feed.take(size), cost))
    _check_index(feed, header, seen)


# --- a block that is decoded while it arrives -------------------------------------------------------------------


def _decode_arriving(feed: Feed, header: StreamHeader, block: BlockHeader, seen: _Records) -> Iterator[Buffer]:
    one = _OneBlock(header, block)
    compressed = 0
    sizes = iter((block.compressed,)) if block.compressed is not None else _chunk_sizes(feed)
    for size in sizes:
        compressed += size
        for view in feed.views(size, _SLICE):
            yield from one.feed(view)
    yield from one.feed(feed.take(-compressed % 4 + header.check_size))
    yield from one.finish(compressed)
    seen.add(len(block.raw) + compressed + header.check_size, one.given)


def _chunk_sizes(feed: Feed) -> Iterator[int]:
    """The sizes of an LZMA2 stream's chunks, with their headers, up to and including its end mark.

    As in liblzma's lzma2_decoder.c; the format has no other description.
    """
    while True:
        head = feed.peek(6)
        control = head[0] if head else 0
        if not control:
            yield 1
            return
        if control >= 0x80:
            # Two bytes of compressed size, less one; a byte of properties where the state is set anew.
            size = int.from_bytes(head[3:5], "big") + 1 + (6 if control >= 0xC0 else 5)
        elif control <= 2:
            size = int.from_bytes(head[1:3], "big") + 1 + 3
        else:
            raise damaged("an LZMA2 chunk is of no known kind")
        yield size


class _OneBlock:
    """One block, decoded as a stream of its own."""

    def __init__(self, header: StreamHeader, block: BlockHeader) -> None:
        self._header = header
        self._block = block
        self._lzma = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self.given = 0
        """Bytes of content so far."""
        self._run(header.raw + block.raw)

    def feed(self, data: Buffer) -> Iterator[bytes]:
        output = self._run(data)
        while True:
            if output:
                self.given += len(output)
                yield output
            if self._lzma.needs_input or self._lzma.eof:
                return
            output = self._run(b"")

    def finish(self, compressed: int) -> Iterator[bytes]:
        """All `compressed` bytes and the check were fed: nothing may come any more, and liblzma must agree."""
        unpadded = len(self._block.raw) + compressed + self._header.check_size
        end = stream_end(self._header, unpadded, self.given)
        for output in self.feed(end):
            raise damaged(f"a block gives {len(output)} bytes more than it should")
        if not self._lzma.eof or self._lzma.unused_data:
            raise damaged("a block does not end where it should")
        return iter(())

    def _run(self, data: Buffer) -> bytes:
        try:
            return self._lzma.decompress(data, PIECE)
        except (lzma.LZMAError, EOFError) as error:
            raise damaged(str(error)) from error


# --- blocks that are decoded side by side -----------------------------------------------------------------------


class _Job:
    """A whole block on its way through a thread; its output is taken from `pieces`."""

    def __init__(self, header: StreamHeader, block: BlockHeader, data: bytes, cost: int) -> None:
        self.header = header
        self.block = block
        self.data = data
        self.cost = cost
        self.pieces: queue.SimpleQueue[bytes | CdiError | Exception | None] = queue.SimpleQueue()
        """Content; then None, or what went wrong."""


class _Pool:
    """Threads, and the blocks that they work on in the order of the content."""

    def __init__(self, threads: int, in_flight: int) -> None:
        self._wanted = threads
        self._limit = in_flight
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._order: deque[_Job] = deque()
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
        """Memory for the block while it is in flight, bytes; None where it must be decoded as it arrives."""
        if self._wanted < 2 or block.compressed is None or block.uncompressed is None:
            return None
        cost = block.compressed + block.uncompressed + min(block.dictionary, block.uncompressed) + _OVERHEAD
        # Where two of them find no room, nothing would be gained by keeping one.
        return cost if cost <= self._limit // 2 else None

    def submit(self, job: _Job) -> None:
        self._used += job.cost
        self._order.append(job)
        self._jobs.put(job)
        if len(self._threads) < min(self._wanted, len(self._order)):
            thread = threading.Thread(target=self._work, name="xz", daemon=True)
            self._threads.append(thread)
            thread.start()

    def make_room(self, cost: int) -> Iterator[Buffer]:
        """Give content, in order, until a block of that cost may be added."""
        while self._order and (self._used + cost > self._limit or len(self._order) >= _BLOCKS_MOST):
            yield from self._first()

    def drain(self) -> Iterator[Buffer]:
        while self._order:
            yield from self._first()

    def _first(self) -> Iterator[Buffer]:
        job = self._order.popleft()
        while (piece := job.pieces.get()) is not None:
            if isinstance(piece, Exception):
                # The blocks behind a broken one are not content.
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

    def _decode(self, job: _Job) -> None:
        one = _OneBlock(job.header, job.block)
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


class _Records:
    """The sizes of a stream's blocks, in constant memory however many there are."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def add(self, unpadded: int, uncompressed: int) -> None:
        self._hash.update(format_number(unpadded) + format_number(uncompressed))
        self.count += 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Records):
            return NotImplemented
        return self.count == other.count and self._hash.digest() == other._hash.digest()

    __hash__ = None  # type: ignore[assignment]  # it changes


def _check_index(feed: Feed, header: StreamHeader, seen: _Records) -> None:
    """Section 4: the index and the footer say what was seen; raises `DecoderFailed`."""
    crc, size, found = zlib.crc32(b"\0"), 1, _Records()

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
        raise damaged("the index counts other blocks than there are")
    for _ in range(seen.count):
        unpadded = number()
        found.add(unpadded, number())
    padding = feed.take(-size % 4)
    if any(padding) or found != seen:
        raise damaged("the index contradicts the blocks")
    if zlib.crc32(padding, crc) != int.from_bytes(feed.take(4), "little"):
        raise damaged("the index's CRC is wrong")
    if parse_footer(feed.take(HEADER_SIZE), header) != size + len(padding) + 4:
        raise damaged("the footer contradicts the index")
