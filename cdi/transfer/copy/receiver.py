"""The target's side of one connection: chunks are checked, written to the disk, and become safe in their order."""

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
from cdi.transfer.copy import frames
from cdi.transfer.copy.crew import work_together
from cdi.transfer.copy.digest import CHUNK, SIZE, Chain, leaf_of
from cdi.transfer.copy.frames import Chunk, Fail, Hello, Kind
from cdi.transfer.copy.line import Line
from cdi.transfer.copy.pack import unpack
from cdi.transfer.meter import Meter
from cdi.transfer.watermark import Watermark

HELLO_SECONDS = 15.0
"""From the end of the handshake to that of the HELLO."""
ALIVE_SECONDS = 5.0
PINGS_MOST = 5000
"""Without anything else between them: seven hours, as they are meant."""
_NOTHING = memoryview(b"")
_REMEDY = "the volume was wiped; look at the memory of both nodes, then clone again"


class Listener:
    """What a target hears, one frame at a time, and the few words that it says."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.lock = threading.Lock()
        """Held by whoever uses the connection."""
        self.given_up = False
        """The source has said why it cannot go on, and listens no more."""

    def hello(self) -> Hello:
        until = time.monotonic() + HELLO_SECONDS
        head = self.line.header(until)
        if head.kind is not Kind.HELLO:
            raise PeerProtocolError(f"a {head.kind.name} before any HELLO")
        return frames.parse_document(Hello, self.line.body(head, until))

    def next(self) -> frames.Header:
        """The next frame that means something.  Raises the source's own failure, where it says one."""
        for _ in range(PINGS_MOST):
            head = self.line.header()
            if head.kind is Kind.FAIL:
                self.given_up = True
                raise frames.parse_document(Fail, self.line.body(head)).error()
            if head.kind is not Kind.PING:
                return head
        raise PeerProtocolError(f"{PINGS_MOST} pings in a row")

    def chunk(self, head: frames.Header, position: int, size: int | None, buffer: memoryview) -> Chunk:
        """A chunk, its payload at the beginning of `buffer`."""
        raw = memoryview(bytearray(frames.prologue(head.runs)))
        self.line.receive(raw)
        chunk = frames.parse_chunk(head, raw, position, size)
        self.line.receive(buffer[: chunk.payload])
        return chunk

    def say(self, frame: bytes) -> None:
        with self.lock:
            self.line.send(frame)


def plain_of(chunk: Chunk, buffer: memoryview) -> memoryview:
    """The bytes of all runs, checked; raises `ChecksumMismatch`, `PeerProtocolError`."""
    payload = buffer[: chunk.payload]
    plain = memoryview(unpack(payload, chunk.plain)) if chunk.compressed else payload
    if leaf_of(chunk.runs, (plain,)) != chunk.leaf:
        raise ChecksumMismatch(f"the chunk at {chunk.offset} is not what was read of the source", remedy=_REMEDY)
    return plain


class KeepAlive:
    """Says now and then that the target is still there, whenever nobody else uses the connection."""

    def __init__(self, listener: Listener, watermark: Callable[[], int]) -> None:
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
        while not self._ended.wait(ALIVE_SECONDS):
            # Who waits for the source with the lock held is not waited for by the source.
            if self._listener.lock.acquire(blocking=False):
                try:
                    # That the connection is broken is found by those who need it.
                    with suppress(Exception):
                        self._listener.line.send(frames.ack(self._watermark()))
                finally:
                    self._listener.lock.release()


@dataclass(slots=True)
class Position:
    """How far the disk is, between two connections."""

    watermark: int = 0
    state: bytes | None = None
    """Of the digest."""
    data: int = 0
    """Bytes that came up to there, as progress counts them."""

    def saved(self) -> bytes:
        return b"" if self.state is None else self.state + self.data.to_bytes(8, "big")

    @classmethod
    def restored(cls, watermark: int, text: str | None) -> Position | None:
        """From a journal; None where it cannot be of this kind."""
        try:
            raw = base64.b64decode(text or "", validate=True)
        except (ValueError, binascii.Error):
            return None
        if len(raw) != SIZE + 8:
            return None
        return cls(watermark=watermark, state=raw[:SIZE], data=int.from_bytes(raw[SIZE:], "big"))


class _Record:
    """What `Watermark` calls a digest: it is handed leaves instead of bytes, in their order."""

    def __init__(self, position: Position, meter: Meter) -> None:
        self.chain = Chain(position.state)
        self.data = position.data
        self._meter = meter

    def update(self, view: bytes | memoryview, /) -> None:
        """A leaf with its offset and length, or nothing."""
        if view:
            leaf, offset, length = bytes(view[:SIZE]), view[SIZE : SIZE + 8], view[SIZE + 8 :]
            self.chain.add(int.from_bytes(offset, "big"), leaf)
            self.data += int.from_bytes(length, "big")
            self._meter.advance(self.data)

    def save(self) -> bytes:
        return self.chain.state + self.data.to_bytes(8, "big")


class DiskReceiver:
    """Writes what comes over one connection to `target`, whose `size` is at least the source's.

    `position` is moved on, whatever happens.  `zeros`: ranges that are zero have to be made so; where it is False they
    read as zeros already.  `checkpoint(watermark, state)` makes progress durable.
    """

    def __init__(
        self,
        listener: Listener,
        hello: Hello,
        target: Target,
        position: Position,
        meter: Meter,
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
        """All before it is on stable storage."""
        self._told = self.safe
        self._came = position.watermark
        """All before it was received, if not written."""
        self._numbers = 0
        self._end: tuple[int, bytes] | None = None
        self._stopped = False

    def run(self) -> bytes:
        """Until END; gives the digest.

        Raises `ChecksumMismatch`, `PeerUnreachable`, `PeerProtocolError`, the source's own failure, and the target's.
        """
        position = self._position
        record = _Record(position, self._meter)
        # The meter counts data, the watermark offsets; so it has one that nobody looks at.
        watermark = Watermark(
            position.watermark, record, Meter(), threading.Event(), None if self._save is None else self._checkpoint
        )
        line = self._listener.line
        check, line.check = line.check, self._checked(line.check)
        done = False
        try:
            work_together(lambda: self._work(watermark), lambda: self._stop(watermark))
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
                f"the {self._size} bytes that came are not the {size} bytes of the source", remedy=_REMEDY
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
                raise Interrupted("the transfer was stopped")
            check()

        return checked

    def _stop(self, watermark: Watermark) -> None:
        self._stopped = True
        watermark.fail()

    def _work(self, watermark: Watermark) -> None:
        buffer = aligned_buffer(CHUNK)
        while True:
            with self._listener.lock:
                if self._end is not None:
                    return
                self._tell()
                before, number = self._came, self._numbers
                chunk = self._take(buffer)
                if self._end is not None:
                    return
                self._numbers += 1
                after = self._came
            if chunk is None:
                self._zero(before, after)
                watermark.complete(number, _NOTHING, after)
                continue
            plain = plain_of(chunk, buffer)
            self._zero(before, chunk.offset)
            self._write(chunk, plain, after)
            record = chunk.leaf + chunk.offset.to_bytes(8, "big") + (after - chunk.offset).to_bytes(8, "big")
            watermark.complete(number, memoryview(record), after)

    def _take(self, buffer: memoryview) -> Chunk | None:
        """A chunk; None for zeros, and for the end."""
        head = self._listener.next()
        before = self._listener.line.received
        match head.kind:
            case Kind.DATA:
                chunk = self._listener.chunk(head, self._came, self._size, buffer)
                self._came = min(chunk.offset + CHUNK, self._size)
                self._meter.add_fetched(self._listener.line.received - before)
                return chunk
            case Kind.MARK:
                self._came = frames.parse_mark(self._listener.line.body(head), self._came, self._size)
            case Kind.END:
                self._end = frames.parse_end(self._listener.line.body(head))
            case _:
                raise PeerProtocolError(f"a {head.kind.name} from a source")
        return None

    def _tell(self) -> None:
        if self.safe > self._told:
            self._told = self.safe
            self._listener.line.send(frames.ack(self._told))

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
