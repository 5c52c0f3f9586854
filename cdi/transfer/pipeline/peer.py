"""Clone of a disk: an import from a peer, of which only the chunks with data are fetched.

A clone has exactly its source's size. The digest of its content is chained from the digests of the chunks
(`cdi.source.peer_chunks`), so its state at the watermark is 32 bytes that the source can compare with what it reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from cdi.api.errors import CdiError, Interrupted, SourceChanged, TargetTooSmall
from cdi.image.info import ImageInfo
from cdi.image.plan import WATERMARK, Plan
from cdi.image.sizes import format_size
from cdi.source.peer import PeerReader, PeerReplaced, PeerSource, verified
from cdi.source.peer_chunks import CHUNK, LEAF_SIZE, Chain, ChunkHeader
from cdi.target.base import Target
from cdi.target.buffer import aligned_buffer
from cdi.transfer.context import ImportContext
from cdi.transfer.control import TransferControl
from cdi.transfer.journal import Journal
from cdi.transfer.pipeline.ranged import RangedPipeline
from cdi.transfer.reader import ResumingReader
from cdi.transfer.retry import RestartRequired
from cdi.transfer.unwrap import UnwrappedImage
from cdi.transfer.watermark import Watermark

_THREADS: Final = 3
"""Number of threads: one writes to the volume, one computes, and one uses the connection, in turns."""
_PROOF: Final = 64 << 20
"""Bytes of a device that the source reads again for one request."""


class PeerDisk(RangedPipeline):
    """Import of a peer's disk."""

    def __init__(self, context: ImportContext) -> None:
        """Plan the clone.

        Raises:
            TargetTooSmall: The disk does not fit; nothing was written.
        """
        self._source = cast("PeerSource", context.reader.source)
        self._context = context
        self._digest = _ChainDigest()
        self._resumed = False
        self.length = self._source.facts.size
        context.plan = self._plan()
        context.unwrapped = UnwrappedImage((), ImageInfo(format="raw", virtual_size=self.length))
        result = context.result
        result.format, result.virtual_size, result.path = "raw", self.length, context.plan.path

    def run(self, context: ImportContext) -> int:
        """Resume or begin the clone, and return the size of the disk in bytes.

        Raises:
            SourceChanged: A device differs from what was fetched before.
            RestartRequired: The source was replaced by another process; the clone resumes after a comparison.
            CdiError: See `RangedPipeline.run`.
        """
        try:
            disk_size = super().run(context)
        except PeerReplaced as replaced:
            raise RestartRequired(replaced.cause) from replaced
        context.result.digest = self._digest.chain.end(self.length)
        context.result.verified("content digest")
        return disk_size

    def resume(self, context: ImportContext) -> int | None:
        start = context.resume_point()
        state = None if start is None else self._state()
        if start is None or state is None or (start % CHUNK and start != self.length):
            return None
        self._resumed = True
        self._digest = _ChainDigest(state)
        if not self._source.facts.is_strong:
            # A device does not reveal whether it was modified.
            self._prove(start, state)
        return start

    def watermark(self, context: ImportContext, start: int) -> Watermark:
        return context.watermark(start, self._digest)

    def transfer(self, reader: ResumingReader, target: Target, watermark: Watermark, connections: int) -> None:
        del connections
        # Beyond the watermark there may be data of an earlier source where the content is zero now.
        zeros = self._resumed or not target.reads_zero
        chunks = _Chunks(reader, self._context.control, watermark.value, self.length)

        def work() -> None:
            buffer = aligned_buffer(CHUNK)
            while (chunk := chunks.take(buffer)) is not None:
                record = _write(target, chunk, zeros=zeros)
                watermark.commit(chunk.index, memoryview(record), chunk.stop)

        def stop() -> None:
            watermark.abort()
            chunks.stop()

        try:
            _run_workers(work, stop)
        finally:
            chunks.close()

    def _plan(self) -> Plan:
        """Return the plan.

        A disk file has its source's size to the byte, however large the volume is: it is the same file, and a virtual
        machine's disk is expanded by the program that runs the machine.
        """
        context, size = self._context, self.length
        capacity, wanted = context.target.capacity, context.job.size
        if capacity is None:
            disk_size, room = size, size if wanted is None else wanted
        else:
            disk_size = capacity if wanted is None else wanted
            room = min(disk_size, capacity)
        if size > room:
            raise TargetTooSmall(
                f"the source disk has {format_size(size)} ({size} bytes), "
                f"the target {format_size(room)} ({room} bytes)",
                where=context.job.target.path,
                remedy="request at least the source's size",
            )
        return Plan(
            path="copy",
            reason="the data of the source volume is read by another worker",
            fetch_bytes=size,
            write_bytes=size,
            scratch_bytes=0,
            connections=1,
            resumable=WATERMARK,
            disk_size=disk_size,
        )

    def _state(self) -> bytes | None:
        """Return the digest's state in the journal; None if it has none."""
        path = self._context.job.journal
        journal = None if path is None else Journal.load(path)
        state = None if journal is None else journal.state
        # Earlier releases appended a number to it.
        return state[:LEAF_SIZE] if state is not None and len(state) in (LEAF_SIZE, LEAF_SIZE + 8) else None

    def _prove(self, stop: int, state: bytes) -> None:
        """Compare what was fetched before `stop` with the source; raise `SourceChanged` if it differs."""
        control, chain, where = self._context.control, Chain(), self._context.reader.facts.location
        control.meter.message = "comparing what was fetched before with the source"
        for start in range(0, stop, _PROOF):
            read = partial(self._source.leaves_of, start, min(start + _PROOF, stop))
            for offset, leaf in control.retries.call(read):
                chain.add(offset, leaf)
        if chain.state != state:
            raise SourceChanged("the disk differs from what was fetched before", where=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """A chunk that was received, with the range without data before it."""

    index: int
    first: int
    """Offset of the range without data."""
    stop: int
    """End of the chunk."""
    header: ChunkHeader | None
    """None if there is only the range without data."""
    payload: memoryview


class _Chunks:
    """The chunks of a disk in order, of which several threads take one in turn; a lost connection is continued."""

    def __init__(self, reader: ResumingReader, control: TransferControl, start: int, size: int) -> None:
        self._reader = reader
        self._retries = control.retries
        self._meter = control.meter
        self._lock = threading.Lock()
        self._position = start
        self._size = size
        self._index = 0
        self._open: PeerReader | None = None
        self._ended = False

    def take(self, buffer: memoryview) -> _Chunk | None:
        """Receive the next chunk into `buffer`; return None after the last one."""
        with self._lock:
            while not self._ended:
                attempt = self._retries.attempt()
                try:
                    chunk = self._receive(buffer)
                except CdiError as failure:
                    self.close()
                    self._retries.backoff(failure, attempt)
                    continue
                except BaseException:
                    self.close()
                    raise
                self._meter.clear_failure()
                return chunk
            return None

    def stop(self) -> None:
        """Have the thread that receives fail, and all others end."""
        self._ended = True
        self._reader.abort()

    def _receive(self, buffer: memoryview) -> _Chunk | None:
        first, payload = self._position, buffer[:0]
        reader = self._open = self._open or cast("PeerReader", self._reader.open(first, None))
        header = reader.next_header()
        if header is None:
            self._ended, stop = True, self._size
            self.close()
        elif not header.runs:
            stop = header.offset
        else:
            stop, payload = min(header.offset + CHUNK, self._size), buffer[: header.payload]
            reader.fill(payload)
            self._meter.add_fetched(len(payload))
        self._position = stop
        self._index += 1
        return _Chunk(index=self._index - 1, first=first, stop=stop, header=header, payload=payload)

    def close(self) -> None:
        """Close the connection, unless all of the response was read."""
        if self._open is not None:
            self._reader.release(self._open)
            self._open = None


def _write(target: Target, chunk: _Chunk, *, zeros: bool) -> bytes:
    """Verify and write a chunk, and return what `_ChainDigest` takes of it."""
    header, at, record = chunk.header, chunk.first, b""
    if header is not None and header.runs:
        data, taken = verified(header, chunk.payload), 0
        record = header.leaf + header.offset.to_bytes(8, "big")
        for begin, end in header.runs:
            start = header.offset + begin
            if zeros and start > at:
                target.zero(at, start - at)
            target.write(data[taken : taken + end - begin], start)
            at, taken = header.offset + end, taken + end - begin
    if zeros and chunk.stop > at:
        target.zero(at, chunk.stop - at)
    return record


def _run_workers(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Call `work` in several threads; when one fails, `stop` has to end the others, and its failure is raised."""
    with ThreadPoolExecutor(_THREADS, "chunk") as pool:
        threads = [pool.submit(work) for _ in range(_THREADS)]
        failures = []
        for thread in as_completed(threads):
            failure = thread.exception()
            if failure is not None:
                failures.append(failure)
                stop()
    if failures:
        # The first failure interrupts the other threads, so the cause is the one that is not an interruption.
        raise min(failures, key=lambda failure: isinstance(failure, Interrupted))


class _ChainDigest:
    """Digest interface of `Watermark` that is given leaves, in order, instead of bytes."""

    def __init__(self, state: bytes | None = None) -> None:
        self.chain = Chain(state)

    def update(self, view: bytes | memoryview, /) -> None:
        """Add a leaf with its offset, or nothing."""
        if view:
            self.chain.add(int.from_bytes(view[LEAF_SIZE:], "big"), bytes(view[:LEAF_SIZE]))

    def save(self) -> bytes:
        return self.chain.state
