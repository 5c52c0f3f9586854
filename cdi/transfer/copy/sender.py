"""The source's side of one connection: a disk is read and sent from where the target has it on.

Each thread takes the next chunk, reads it, looks for zeros, and hashes the rest; then it waits for its turn to send.
Chunks are compressed while the network is the slowest part, or its use is limited: a slow one gets few bytes, and a
fast one does not wait for a compressor, which takes more processor time than everything else together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cdi.api.errors import PeerProtocolError, SourceChanged
from cdi.image.sizes import human
from cdi.target.buffer import aligned_buffer, data_runs
from cdi.transfer.control import Control
from cdi.transfer.copy import frames
from cdi.transfer.copy.crew import Turns, work_together
from cdi.transfer.copy.digest import CHUNK, Chain, Run, leaf_of
from cdi.transfer.copy.frames import Done, Fail, Hello, Kind, Welcome
from cdi.transfer.copy.line import Line
from cdi.transfer.copy.origin import Origin
from cdi.transfer.copy.pack import Packer

MARK_EVERY = 64 << 20
"""Bytes of zeros that are read until the target is told of them."""
ALIVE_SECONDS = 5.0
"""Until a word is said for its own sake."""
END_PATIENCE = 3600.0
"""Seconds that the target may take to check, flush and name the disk."""


class Conversation:
    """The words of a source, in their order; used by one thread at a time."""

    def __init__(self, line: Line, control: Control) -> None:
        self.line = line
        self.control = control
        self.sent = 0
        """The offset up to which the target was told everything."""
        self.acknowledged = 0
        self.told_at = time.monotonic()
        self._ticket = control.throttle.ticket()

    def hello(self, hello: Hello) -> Welcome:
        """Raises the target's own failure, where it says one."""
        self.line.send(frames.document(hello))
        while True:
            head = self.line.header()
            body = self.line.body(head)
            if head.kind is not Kind.WELCOME:
                self._other(head.kind, body)
                continue
            welcome = frames.parse_document(Welcome, body)
            place = welcome.watermark
            if place > hello.size or (place % CHUNK and place != hello.size):
                raise PeerProtocolError(f"a welcome at {place} of {hello.size} bytes")
            self.sent = self.acknowledged = place
            return welcome

    def chunk(
        self, offset: int, leaf: bytes, runs: tuple[Run, ...], plain: list[memoryview], packed: bytes | None
    ) -> None:
        pieces = plain if packed is None else [memoryview(packed)]
        payload = sum(map(len, pieces))
        self.line.send(frames.data(offset, leaf, runs, payload, frames.RAW if packed is None else frames.ZSTD))
        for piece in pieces:
            self._limited(piece)
        self.told_at = time.monotonic()

    def narrow(self) -> bool:
        """Whether fewer bytes would be sooner there."""
        return self.control.throttle.bandwidth > 0 or self.line.narrow()

    def mark(self, offset: int) -> None:
        self.line.send(frames.mark(offset))
        self.told_at = time.monotonic()

    def alive(self) -> None:
        if time.monotonic() - self.told_at >= ALIVE_SECONDS:
            self.line.send(frames.header(Kind.PING))
            self.told_at = time.monotonic()

    def listen(self) -> None:
        """Hear what was said meanwhile."""
        while self.line.waiting():
            head = self.line.header()
            self._other(head.kind, self.line.body(head))

    def end(self, size: int, digest: bytes) -> None:
        """Returns when the target has the disk, and of this digest."""
        self.line.send(frames.end(size, digest))
        until = time.monotonic() + END_PATIENCE
        while True:
            head = self.line.header(until)
            body = self.line.body(head, until)
            if head.kind is not Kind.DONE:
                self._other(head.kind, body)
                continue
            if frames.parse_digest(frames.parse_document(Done, body).digest) != digest:
                raise PeerProtocolError("the target says that it has another content")
            self.line.send(frames.header(Kind.BYE))
            return

    def _other(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.ACK:
            self.acknowledged = frames.parse_ack(body, self.acknowledged, self.sent)
        elif kind is Kind.FAIL:
            raise frames.parse_document(Fail, body).error()
        else:
            raise PeerProtocolError(f"a {kind.name} from a target")

    def _limited(self, view: memoryview) -> None:
        throttle = self.control.throttle
        while view:
            piece = view[: throttle.grain(len(view))]
            self.line.send(piece)
            throttle.spend(len(piece), self._ticket)
            view = view[len(piece) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A chunk as it was read; without runs it is zero."""

    number: int
    offset: int
    view: memoryview
    runs: tuple[Run, ...]
    leaf: bytes

    def pieces(self) -> list[memoryview]:
        return [self.view[start:stop] for start, stop in self.runs]


class DiskSender:
    """Sends `origin` over one connection.

    `fetched` counts the bytes that were read; `resumed_at` is where the target had it on from.
    """

    def __init__(self, origin: Origin, control: Control) -> None:
        self.fetched = 0
        self.resumed_at = 0
        self._origin = origin
        self._control = control
        self._next = threading.Lock()
        self._numbers = 0
        self._chunks: Iterator[int] = iter(())

    def run(self, talk: Conversation, hello: Hello, *, proven: bool) -> bytes:
        """From HELLO to DONE; gives the digest.

        Where the content is not `proven` to be what an earlier source sent, that part is read again and compared; it
        raises `SourceChanged` where it is another, upon which a fresh HELLO is to be said.
        """
        answer = talk.hello(hello)
        self.resumed_at = answer.watermark
        chain = Chain(frames.parse_digest(answer.state) if answer.watermark else None)
        meter = self._control.meter
        meter.total = hello.data
        meter.restart(f"resumed at {human(answer.watermark)}" if answer.watermark else "", answer.data)
        meter.phase = "transferring"
        if answer.watermark and not proven:
            meter.note = "reading again what was sent, as a device does not tell whether it was written to"
            again = Chain()
            self._through(talk, again, 0, answer.watermark, send=False)
            if again.state != chain.state:
                raise SourceChanged("the disk is not what was sent of it before", where=self._origin.path)
            meter.note = ""
        self._through(talk, chain, answer.watermark, self._origin.size, send=True)
        self._origin.check()
        digest = chain.end(self._origin.size)
        meter.phase = "flushing"
        talk.end(self._origin.size, digest)
        return digest

    def _through(self, talk: Conversation, chain: Chain, start: int, stop: int, *, send: bool) -> None:
        self._numbers = 0
        self._chunks = _chunks(self._origin, start, stop)
        turns = Turns(talk.line.check)

        def work() -> None:
            buffer, packer = aligned_buffer(CHUNK), Packer()
            while (read := self._read(buffer, stop)) is not None:
                pieces = read.pieces()
                packed = packer.pack(pieces) if send and pieces and talk.narrow() else None
                with turns.turn(read.number):
                    if read.runs:
                        chain.add(read.offset, read.leaf)
                    if send:
                        self._send(talk, read, pieces, packed)
                    talk.alive()
                    talk.listen()

        work_together(work, turns.stop)

    def _read(self, buffer: memoryview, stop: int) -> Read | None:
        with self._next:
            offset = next(self._chunks, None)
            if offset is None:
                return None
            number = self._numbers
            self._numbers += 1
            view = buffer[: min(CHUNK, stop - offset)]
            self.fetched += len(view)
        self._origin.read(view, offset)
        runs = tuple(data_runs(view))
        leaf = leaf_of(runs, (view[start:stop] for start, stop in runs)) if runs else b""
        return Read(number=number, offset=offset, view=view, runs=runs, leaf=leaf)

    def _send(self, talk: Conversation, read: Read, pieces: list[memoryview], packed: bytes | None) -> None:
        end = read.offset + len(read.view)
        meter = self._control.meter
        if read.runs:
            # Before it is sent: the target may answer as soon as it has the last byte.
            talk.sent = end
            talk.chunk(read.offset, read.leaf, read.runs, pieces, packed)
            meter.advance(meter.done + len(read.view))
        elif end - talk.sent >= MARK_EVERY:
            talk.sent = end
            talk.mark(end)


def _chunks(origin: Origin, start: int, stop: int) -> Iterator[int]:
    """The offsets of chunks that hold data."""
    at = start
    for begin, end in origin.extents(start):
        first = max(at, begin // CHUNK * CHUNK)
        for at in range(first, min(end, stop), CHUNK):
            yield at
        at = max(first, -(-min(end, stop) // CHUNK) * CHUNK)
        if end >= stop:
            return
