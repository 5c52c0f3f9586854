"""Receiver side of one connection: verifies chunks, writes them to the disk and advances the watermark in order."""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cdi.api.errors import ChecksumMismatch, Interrupted, PeerProtocolError
from cdi.target.base import Target
from cdi.target.buffer import aligned_buffer
from cdi.transfer.clone import frames
from cdi.transfer.clone.compression import unpack
from cdi.transfer.clone.digest import CHUNK, SIZE, Chain, leaf_hash
from cdi.transfer.clone.frames import Chunk, Fail, Hello, Kind
from cdi.transfer.clone.peer_connection import PeerConnection
from cdi.transfer.clone.threads import run_workers
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.watermark import Watermark

HELLO_TIMEOUT = 15.0
"""Seconds from the end of the handshake to that of the HELLO."""
KEEPALIVE_INTERVAL = 5.0
MAX_PINGS = 5000
"""Maximum consecutive pings: seven hours at their usual interval."""
_NOTHING = memoryview(b"")
_REMEDY = "the volume was wiped; check the memory of both nodes, then clone again"


class FrameReader:
    """Receiving half of a connection, one frame at a time, with the few frames that a target sends."""

    def __init__(self, line: PeerConnection) -> None:
        self.line = line
        self.lock = threading.Lock()
        """Held by the thread that uses the connection."""
        self.peer_failed = False
        """Whether the source has reported its failure, after which it no longer reads."""

    def hello(self) -> Hello:
        until = time.monotonic() + HELLO_TIMEOUT
        head = self.line.header(until)
        if head.kind is not Kind.HELLO:
            raise PeerProtocolError(f"received {head.kind.name} before HELLO")
        return frames.parse_document(Hello, self.line.body(head, until))

    def next(self) -> frames.Header:
        """Return the next frame other than a ping; raise the source's own failure if it reports one."""
        for _ in range(MAX_PINGS):
            head = self.line.header()
            if head.kind is Kind.FAIL:
                self.peer_failed = True
                raise frames.parse_document(Fail, self.line.body(head)).error()
            if head.kind is not Kind.PING:
                return head
        raise PeerProtocolError(f"received {MAX_PINGS} consecutive pings")

    def chunk(self, head: frames.Header, position: int, size: int | None, buffer: memoryview) -> Chunk:
        """Receive a chunk, its payload at the beginning of `buffer`."""
        raw = memoryview(bytearray(frames.prologue(head.runs)))
        self.line.receive(raw)
        chunk = frames.parse_chunk(head, raw, position, size)
        self.line.receive(buffer[: chunk.payload])
        return chunk

    def send(self, frame: bytes) -> None:
        with self.lock:
            self.line.send(frame)


def decode_chunk(chunk: Chunk, buffer: memoryview) -> memoryview:
    """Return the verified bytes of all runs; may raise `ChecksumMismatch` or `PeerProtocolError`."""
    payload = buffer[: chunk.payload]
    plain = memoryview(unpack(payload, chunk.plain)) if chunk.compressed else payload
    if leaf_hash(chunk.runs, (plain,)) != chunk.leaf:
        raise ChecksumMismatch(f"the chunk at offset {chunk.offset} does not match its digest", remedy=_REMEDY)
    return plain


class KeepAlive:
    """Thread that sends keep-alives whenever no other thread uses the connection."""

    def __init__(self, listener: FrameReader, watermark: Callable[[], int]) -> None:
        self._listener = listener
        self._watermark = watermark
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alive", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(KEEPALIVE_INTERVAL):
            # The source does not wait for a target that waits for it with the lock held.
            if self._listener.lock.acquire(blocking=False):
                try:
                    # Threads that need the connection report that it broke.
                    with suppress(Exception):
                        self._listener.line.send(frames.ack(self._watermark()))
                finally:
                    self._listener.lock.release()


@dataclass(slots=True)
class ResumePoint:
    """Resume point between two connections."""

    watermark: int = 0
    state: bytes | None = None
    """State of the digest at the watermark."""
    data: int = 0
    """Bytes received up to the watermark, as progress counts them."""

    @classmethod
    def restored(cls, watermark: int, text: str | None) -> ResumePoint | None:
        """Return the position from a journal, or None if the text is not a valid one."""
        try:
            raw = base64.b64decode(text or "", validate=True)
        except (ValueError, binascii.Error):
            return None
        if len(raw) != SIZE + 8:
            return None
        return cls(watermark=watermark, state=raw[:SIZE], data=int.from_bytes(raw[SIZE:], "big"))


class _ChainHash:
    """Digest interface of `Watermark` that receives leaves, in order, instead of bytes."""

    def __init__(self, position: ResumePoint, meter: ProgressMeter) -> None:
        self.chain = Chain(position.state)
        self.data = position.data
        self._meter = meter

    def update(self, view: bytes | memoryview, /) -> None:
        """Add a leaf with its offset and length, or nothing."""
        if view:
            leaf, offset, length = bytes(view[:SIZE]), view[SIZE : SIZE + 8], view[SIZE + 8 :]
            self.chain.add(int.from_bytes(offset, "big"), leaf)
            self.data += int.from_bytes(length, "big")
            self._meter.advance(self.data)

    def save(self) -> bytes:
        return self.chain.state + self.data.to_bytes(8, "big")


class DiskReceiver:
    """Writer of what one connection delivers to `target`, whose `size` is at least the source's.

    `position` is updated in any case. `zeros` says that zero ranges must be zeroed explicitly; otherwise they already
    read as zeros. `checkpoint(watermark, state)` makes progress durable.
    """

    def __init__(
        self,
        listener: FrameReader,
        hello: Hello,
        target: Target,
        position: ResumePoint,
        meter: ProgressMeter,
        checkpoint: Callable[[int, bytes | None], None] | None,
        *,
        zeros: bool,
    ) -> None:
        self._listener = listener
        self._size = hello.size
        self._target = target
        self._position = position
        self._meter = meter
        self._zeros = zeros
        self._save = checkpoint
        self.safe = position.watermark
        """Offset before which everything is on stable storage."""
        self._acked = self.safe
        self._received = position.watermark
        """Offset before which everything was received, if not written."""
        self._numbers = 0
        self._end: tuple[int, bytes] | None = None
        self._stopped = False

    def run(self) -> bytes:
        """Receive until END and return the digest.

        Raises:
            ChecksumMismatch: a chunk or the whole content is not what the source read.
            PeerUnreachable, PeerProtocolError: the connection failed.
            CdiError: the source reported its failure, or the target failed.
        """
        position = self._position
        record = _ChainHash(position, self._meter)
        # The meter counts data and the watermark offsets, so the watermark gets an unused meter.
        watermark = Watermark(
            position.watermark,
            record,
            ProgressMeter(),
            threading.Event(),
            None if self._save is None else self._checkpoint,
        )
        line = self._listener.line
        check, line.check = line.check, self._checked(line.check)
        done = False
        try:
            run_workers(lambda: self._work(watermark), lambda: self._stop(watermark))
            done = True
        finally:
            line.check = check
            position.watermark, position.state, position.data = watermark.value, record.chain.state, record.data
            watermark.close(final=not done)
        assert self._end is not None
        size, wanted = self._end
        digest = record.chain.end(self._size)
        if size != self._size or digest != wanted:
            raise ChecksumMismatch(
                f"the received {self._size} bytes do not match the {size} bytes of the source", remedy=_REMEDY
            )
        self._zero(position.watermark, self._size)
        return digest

    def _checkpoint(self, watermark: int, state: bytes | None) -> None:
        assert self._save is not None
        self._save(watermark, state)
        self.safe = watermark

    def _checked(self, check: Callable[[], None]) -> Callable[[], None]:
        def checked() -> None:
            if self._stopped:
                raise Interrupted("the transfer was interrupted")
            check()

        return checked

    def _stop(self, watermark: Watermark) -> None:
        self._stopped = True
        watermark.abort()

    def _work(self, watermark: Watermark) -> None:
        buffer = aligned_buffer(CHUNK)
        while True:
            with self._listener.lock:
                if self._end is not None:
                    return
                self._send_ack()
                before, number = self._received, self._numbers
                chunk = self._take(buffer)
                if self._end is not None:
                    return
                self._numbers += 1
                after = self._received
            if chunk is None:
                self._zero(before, after)
                watermark.commit(number, _NOTHING, after)
                continue
            plain = decode_chunk(chunk, buffer)
            self._zero(before, chunk.offset)
            self._write(chunk, plain, after)
            record = chunk.leaf + chunk.offset.to_bytes(8, "big") + (after - chunk.offset).to_bytes(8, "big")
            watermark.commit(number, memoryview(record), after)

    def _take(self, buffer: memoryview) -> Chunk | None:
        """Return the next chunk; None for zeros and for the end."""
        head = self._listener.next()
        before = self._listener.line.received
        match head.kind:
            case Kind.DATA:
                chunk = self._listener.chunk(head, self._received, self._size, buffer)
                self._received = min(chunk.offset + CHUNK, self._size)
                self._meter.add_fetched(self._listener.line.received - before)
                return chunk
            case Kind.MARK:
                self._received = frames.parse_mark(self._listener.line.body(head), self._received, self._size)
            case Kind.END:
                self._end = frames.parse_end(self._listener.line.body(head))
            case _:
                raise PeerProtocolError(f"unexpected {head.kind.name} from the source")
        return None

    def _send_ack(self) -> None:
        if self.safe > self._acked:
            self._acked = self.safe
            self._listener.line.send(frames.ack(self._acked))

    def _write(self, chunk: Chunk, plain: memoryview, end: int) -> None:
        at, taken = chunk.offset, 0
        for start, stop in chunk.runs:
            self._zero(at, chunk.offset + start)
            self._target.write(plain[taken : taken + stop - start], chunk.offset + start)
            at, taken = chunk.offset + stop, taken + stop - start
        self._zero(at, end)

    def _zero(self, start: int, stop: int) -> None:
        if self._zeros and stop > start:
            self._target.zero(start, stop - start)
