"""Sender side of one connection: sends the chunks of a subscription from where the target resumes.

Chunks are compressed while the network is the bottleneck, or its use is limited: a slow network carries fewer bytes,
and a fast one does not wait for the compressor, which uses more CPU time than everything else together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cdi.api.errors import PeerProtocolError, PeerUnreachable, SourceChanged
from cdi.transfer.clone import frames
from cdi.transfer.clone.clone_source import CloneSource
from cdi.transfer.clone.compression import ChunkCompressor
from cdi.transfer.clone.digest import CHUNK, Chain
from cdi.transfer.clone.fanout import Chunk, EndOfStream, SubscriberLagged, Subscription
from cdi.transfer.clone.frames import Done, Fail, Hello, Kind, Welcome
from cdi.transfer.clone.peer_connection import PeerConnection
from cdi.transfer.rate_limit import RateLimiter

MARK_INTERVAL_BYTES = 64 << 20
"""Bytes of zeros after which the target is notified of them."""
KEEPALIVE_INTERVAL = 5.0
"""Seconds without a frame after which a keep-alive is sent."""
_POLL_INTERVAL = 0.25
END_TIMEOUT = 3600.0
"""Seconds that the target may take to verify, flush and commit the disk."""


class SenderProtocol:
    """Protocol of a source, in order; used by one thread at a time."""

    def __init__(self, line: PeerConnection, throttles: Sequence[RateLimiter]) -> None:
        """Set up the protocol; all `throttles` apply: the target's, and the one for all targets."""
        self.line = line
        self.sent = 0
        """Offset up to which the target was informed of everything."""
        self.acknowledged = 0
        self.told_at = time.monotonic()
        self._throttles = tuple((throttle, throttle.priority()) for throttle in throttles)

    def hello(self, hello: Hello) -> Welcome:
        """Send HELLO and return the response; raise the failure that the target reports."""
        self.line.send(frames.encode_message(hello))
        while True:
            head = self.line.header()
            body = self.line.body(head)
            if head.kind is not Kind.WELCOME:
                self._handle_frame(head.kind, body)
                continue
            welcome = frames.parse_document(Welcome, body)
            place = welcome.watermark
            if place > hello.size or (place % CHUNK and place != hello.size):
                raise PeerProtocolError(f"invalid WELCOME at {place} of {hello.size} bytes")
            self.sent = self.acknowledged = place
            return welcome

    def chunk(self, chunk: Chunk, packer: ChunkCompressor) -> None:
        assert chunk.piece is not None
        packed = chunk.packed(packer) if self.should_compress() else None
        pieces = chunk.pieces() if packed is None else [memoryview(packed)]
        payload = sum(map(len, pieces))
        encoding = frames.RAW if packed is None else frames.ZSTD
        # Set before sending: the target may respond as soon as it has the last byte.
        self.sent = chunk.end
        self.line.send(frames.data(chunk.offset, chunk.piece.leaf, chunk.piece.runs, payload, encoding))
        for piece in pieces:
            self._limited(piece)
        self.told_at = time.monotonic()

    def should_compress(self) -> bool:
        """Return whether compression would speed up the transfer."""
        return any(throttle.bandwidth > 0 for throttle, _ in self._throttles) or self.line.narrow()

    def mark(self, offset: int) -> None:
        self.sent = offset
        self.line.send(frames.encode_zero(offset))
        self.told_at = time.monotonic()

    def ping_if_idle(self) -> None:
        if time.monotonic() - self.told_at >= KEEPALIVE_INTERVAL:
            self.line.send(frames.header(Kind.PING))
            self.told_at = time.monotonic()

    def process_incoming(self) -> None:
        """Process the frames that have arrived."""
        while self.line.has_frame():
            head = self.line.header()
            self._handle_frame(head.kind, self.line.body(head))

    def end(self, size: int, digest: bytes) -> None:
        """Send END and wait until the target has committed the disk with this digest."""
        self.line.send(frames.end(size, digest))
        until = time.monotonic() + END_TIMEOUT
        while True:
            head = self.line.header(until)
            body = self.line.body(head, until)
            if head.kind is not Kind.DONE:
                self._handle_frame(head.kind, body)
                continue
            if frames.parse_digest(frames.parse_document(Done, body).digest) != digest:
                raise PeerProtocolError("the target reports another digest")
            self.line.send(frames.header(Kind.BYE))
            return

    def _handle_frame(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.ACK:
            self.acknowledged = frames.parse_ack(body, self.acknowledged, self.sent)
        elif kind is Kind.FAIL:
            raise frames.parse_document(Fail, body).error()
        else:
            raise PeerProtocolError(f"unexpected {kind.name} from the target")

    def _limited(self, view: memoryview) -> None:
        while view:
            piece = view[: min(throttle.max_read(len(view)) for throttle, _ in self._throttles)]
            self.line.send(piece)
            for throttle, ticket in self._throttles:
                throttle.consume(len(piece), ticket)
            view = view[len(piece) :]


class SendSession:
    """Transfer of one source to one target over one connection."""

    def __init__(
        self,
        source: CloneSource,
        talk: SenderProtocol,
        subscription: Callable[[int, bool], Subscription],
        *,
        alone: bool = False,
    ) -> None:
        """Set up the transfer.

        ``seat(cursor, alone)`` returns a subscription for a target that has everything before the cursor: to a shared
        pass, or, for one that lagged (`alone`), to a pass of its own. It calls `pause` while it waits.
        """
        self.resumed_at = 0
        self.data = 0
        """Bytes that the target has, as progress counts them."""
        self.ending = False
        """Whether everything was sent."""
        self.alone = alone
        self._source = source
        self._talk = talk
        self._seat = subscription
        self._packer = ChunkCompressor()
        self._cursor = 0
        self._proof: tuple[int, bytes] | None = None
        """Offset up to which the target's state must be proven, and that state."""

    def run(self, hello: Hello, told: Callable[[], None] = lambda: None) -> bytes:
        """Run the protocol from HELLO to DONE and return the digest; `told` is called whenever more was sent.

        If the content is not known to equal what an earlier source sent, that part is read again and compared.

        Raises:
            SourceChanged: it differs; the caller must send a fresh HELLO.
        """
        talk = self._talk
        answer = talk.hello(hello)
        self.resumed_at, self.data = answer.watermark, answer.data
        state = frames.parse_digest(answer.state) if answer.watermark else None
        chain = Chain(state)
        if state is not None and not self._source.has_strong_validator:
            # A device does not reveal whether it was modified.
            self._proof, chain = (answer.watermark, state), Chain()
        else:
            self._cursor = answer.watermark
        while True:
            subscription = self._seat(self._cursor, self.alone)
            try:
                self._send_chunks(subscription, chain, told)
            except SubscriberLagged:
                self.alone = True
                if hello.content == "archive":
                    raise PeerUnreachable(
                        "the target lagged behind the others; restarting in a pass of its own", where=talk.line.peer
                    ) from None
                continue
            finally:
                subscription.leave()
            break
        self._prove(chain, self._source.size)
        size = self._source.final_size(self._cursor)
        digest = chain.end(size)
        self.ending = True
        told()
        talk.end(size, digest)
        return digest

    def pause(self) -> None:
        """Keep the connection alive while there is nothing to send."""
        self._talk.ping_if_idle()
        self._talk.process_incoming()

    def _send_chunks(self, subscription: Subscription, chain: Chain, told: Callable[[], None]) -> None:
        while True:
            try:
                with subscription.chunk(_POLL_INTERVAL) as chunk:
                    # A hole may follow, so the chunk is processed before the next one is awaited.
                    if chunk is not None and chunk.end > self._cursor:
                        self._take(chunk, chain)
                        told()
            except EndOfStream:
                return
            self.pause()

    def _take(self, chunk: Chunk, chain: Chain) -> None:
        assert chunk.piece is not None
        self._prove(chain, chunk.offset)
        self._cursor = chunk.end
        if chunk.piece.runs:
            chain.add(chunk.offset, chunk.piece.leaf)
        if self._proof is not None:
            return
        if chunk.piece.runs:
            self._talk.chunk(chunk, self._packer)
            self.data += len(chunk.piece.view)
        elif chunk.end - self._talk.sent >= MARK_INTERVAL_BYTES:
            self._talk.mark(chunk.end)

    def _prove(self, chain: Chain, position: int) -> None:
        """Compare the state once everything before `position` is in `chain`."""
        if self._proof is not None and position >= self._proof[0]:
            state = self._proof[1]
            self._proof = None
            if chain.state != state:
                raise SourceChanged("the disk differs from what was sent before")
