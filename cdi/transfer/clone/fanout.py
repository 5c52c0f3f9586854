"""Fan-out reading: one pass over a source for all subscribed targets, in which each chunk is read once.

    reader threads ──► window of chunks in order ──► one subscription per target, which consumes at its own pace

The window has a fixed number of buffers, and a chunk's buffer is reused once the slowest subscriber has passed it. A
slow subscriber therefore stalls the others. That is tolerated for a share of the time (`MAX_STALL`); then its
subscription is evicted, and its target continues in a pass of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cdi.api.errors import CdiError, InternalError
from cdi.target.buffer import aligned_buffer
from cdi.transfer.clone.digest import CHUNK, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdi.transfer.clone.compression import ChunkCompressor

MAX_STALL: Final = 5.0
"""Seconds for which a slow target may stall the others in total, plus `MAX_STALL_RATIO` of the elapsed time."""
MAX_STALL_RATIO: Final = 0.25
_POLL_INTERVAL = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Content of a chunk; without runs it is zero."""

    view: memoryview
    runs: tuple[Run, ...]
    leaf: bytes


class ChunkReader(Protocol):
    """Chunks of a source from some offset to its end."""

    threads: int
    """Number of threads that may read concurrently."""

    def next(self) -> int | None:
        """Return the offset of the next chunk, or None at the end; called by one thread at a time."""
        ...

    def read(self, offset: int, buffer: memoryview) -> Piece | None:
        """Return the content of a chunk, or None at the end; raises source errors."""
        ...


class Chunk:
    """Chunk of a pass, shared by its subscribers."""

    __slots__ = ("_packed", "_tried", "buffer", "lock", "number", "offset", "piece", "pins")

    def __init__(self, number: int, offset: int, buffer: memoryview) -> None:
        self.number = number
        self.offset = offset
        self.buffer = buffer
        self.piece: Piece | None = None
        """Content; None until it is read."""
        self.pins = 0
        self.lock = threading.Lock()
        self._packed: bytes | None = None
        self._tried = False

    @property
    def end(self) -> int:
        return self.offset + (len(self.piece.view) if self.piece is not None else 0)

    def pieces(self) -> list[memoryview]:
        assert self.piece is not None
        return [self.piece.view[start:stop] for start, stop in self.piece.runs]

    def packed(self, packer: ChunkCompressor) -> bytes | None:
        """Return the chunk compressed, once for all subscribers that need it; None if that saves nothing."""
        with self.lock:
            if not self._tried:
                self._packed, self._tried = packer.pack(self.pieces()), True
            return self._packed


class SubscriberLagged(Exception):
    """The subscription was evicted because it lagged."""


class EndOfStream(Exception):
    """There are no more chunks."""


class Subscription:
    """Subscription of one target, used by its thread."""

    def __init__(self, reading: FanoutReader, number: int) -> None:
        self.next = number
        """Number of the next chunk to consume."""
        self.evicted = False
        self._reading = reading

    @contextmanager
    def chunk(self, seconds: float) -> Iterator[Chunk | None]:
        """Yield the next chunk, valid within the context; None if there is none within `seconds`.

        Raises:
            SubscriberLagged: the subscription was evicted.
            EndOfStream: the last chunk was consumed.
            CdiError: reading failed.
        """
        chunk = self._reading.take(self, seconds)
        try:
            yield chunk
        finally:
            if chunk is not None:
                self._reading.release(self, chunk)

    def leave(self) -> None:
        self._reading.leave(self)


class FanoutReader:
    """Pass over a source, with its own threads; it ends when nothing is left to read or no subscriber is left."""

    def __init__(
        self,
        reader: ChunkReader,
        start: int,
        depth: int,
        *,
        counted: Callable[[int], None],
        ended: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a pass with a window of `depth` chunks; `counted` is called with the number of bytes read."""
        self.over = False
        """Whether reading has ended."""
        self._reader = reader
        self._counted = counted
        self._ended = ended
        self._clock = clock
        self._changed = threading.Condition()
        self._free = [aligned_buffer(CHUNK) for _ in range(depth)]
        self._window: deque[Chunk] = deque()
        self._first = 0
        """Number of the first chunk in the window."""
        self._tail = start
        """Offset before which everything has left the window."""
        self._made = 0
        self._subscriptions: list[Subscription] = []
        self._idle = 0
        """Number of subscriptions whose targets wait for a chunk."""
        self._failure: CdiError | None = None
        self._began = clock()
        self._held = 0.0
        self._held_since: float | None = None
        self._left = reader.threads

    def begin(self) -> None:
        """Start the threads, once the first subscriptions exist."""
        for number in range(self._reader.threads):
            threading.Thread(target=self._run, name=f"read-{number}", daemon=True).start()

    # --- subscriptions ------------------------------------------------------------------------------------------

    def join(self, cursor: int) -> Subscription | None:
        """Return a subscription from `cursor` on, or None if the window no longer covers it."""
        with self._changed:
            if self._tail > cursor or self._failure is not None or (self._made and not self._subscriptions):
                return None
            subscription = Subscription(self, self._first)
            self._subscriptions.append(subscription)
            return subscription

    def leave(self, subscription: Subscription) -> None:
        with self._changed:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
                self._advance_window()

    def take(self, subscription: Subscription, seconds: float) -> Chunk | None:
        until = self._clock() + seconds
        with self._changed:
            self._idle += 1
            try:
                while True:
                    if subscription.evicted:
                        raise SubscriberLagged
                    if subscription.next < self._made:
                        chunk = self._window[subscription.next - self._first]
                        if chunk.piece is not None:
                            chunk.pins += 1
                            return chunk
                    if self._failure is not None:
                        raise self._failure
                    if self.over and subscription.next >= self._made:
                        raise EndOfStream
                    left = until - self._clock()
                    if left <= 0:
                        return None
                    self._changed.wait(min(left, _POLL_INTERVAL))
            finally:
                self._idle -= 1

    def release(self, subscription: Subscription, chunk: Chunk) -> None:
        with self._changed:
            chunk.pins -= 1
            subscription.next = chunk.number + 1
            if not subscription.evicted:
                self._advance_window()

    def _advance_window(self) -> None:
        """Remove the chunks that every subscriber has passed from the window."""
        least = min((subscription.next for subscription in self._subscriptions), default=self._made)
        while self._window and self._window[0].number < least and self._window[0].piece is not None:
            chunk = self._window.popleft()
            self._first, self._tail = chunk.number + 1, max(self._tail, chunk.end)
            # An evicted subscriber may still send this chunk; it keeps the buffer, and a new one replaces it.
            self._free.append(aligned_buffer(CHUNK) if chunk.pins else chunk.buffer)
        self._changed.notify_all()

    # --- reading ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (chunk := self._next_chunk()) is not None:
                piece = self._reader.read(chunk.offset, chunk.buffer)
                if piece is not None:
                    self._counted(len(piece.view))
                self._done(chunk, piece)
        except BaseException as error:  # noqa: BLE001 - reraised in the waiting subscribers
            failure = error if isinstance(error, CdiError) else InternalError(f"{type(error).__name__}: {error}")
            with self._changed:
                self._failure = self._failure or failure
                self._changed.notify_all()
        finally:
            with self._changed:
                self._left -= 1
                last = not self._left
                self.over = self.over or last
                self._changed.notify_all()
            if last:
                self._ended()

    def _next_chunk(self) -> Chunk | None:
        with self._changed:
            while not self._free and self._wanted():
                self._evict_lagging()
                self._changed.wait(_POLL_INTERVAL)
            self._held_since = None
            if not self._wanted():
                return None
            offset = self._reader.next()
            if offset is None:
                self.over = True
                self._changed.notify_all()
                return None
            chunk = Chunk(self._made, offset, self._free.pop())
            self._made += 1
            self._window.append(chunk)
            return chunk

    def _wanted(self) -> bool:
        return bool(self._subscriptions) and self._failure is None and not self.over

    def _done(self, chunk: Chunk, piece: Piece | None) -> None:
        with self._changed:
            if piece is None:
                # A single-threaded source reached its end: this chunk does not exist.
                self._window.pop()
                self._made -= 1
                self.over = True
            else:
                chunk.piece = piece
            self._advance_window()

    def _evict_lagging(self) -> None:
        """Account for a full window that stalls ready subscribers, and evict the slowest ones beyond the limit."""
        now = self._clock()
        if self._held_since is not None:
            self._held += now - self._held_since
        self._held_since = now if self._idle and len(self._subscriptions) > 1 else None
        if self._held_since is not None and self._held > MAX_STALL + MAX_STALL_RATIO * (now - self._began):
            least = min(subscription.next for subscription in self._subscriptions)
            for subscription in [one for one in self._subscriptions if one.next == least]:
                subscription.evicted = True
                self._subscriptions.remove(subscription)
            self._held, self._held_since, self._began = 0.0, None, now
            self._advance_window()
