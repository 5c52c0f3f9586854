"""Window of recently read chunks, which the targets of one source share, so that it is read about once for all of them.

A chunk stays in the window until every target that is going to need it has taken it. A slow target therefore stalls the
others once the window is full. That is tolerated for a share of the time (`MAX_STALL`); then the target has lagged: the
window no longer waits for it, and what it needs is read again. Targets that are expected to begin together wait for
each other within bounds, and so does one that comes late, for the end of those that are ahead of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cdi.api.errors import CdiError, InternalError, Interrupted
from cdi.source.peer_chunks import CHUNK, Run
from cdi.target.buffer import aligned_buffer

if TYPE_CHECKING:
    from cdi.transfer.clone.compression import ChunkCompressor

MAX_STALL: Final = 5.0
"""Seconds for which a slow target may stall the others in total, plus `MAX_STALL_RATIO` of the elapsed time."""
MAX_STALL_RATIO: Final = 0.25
GATHER_WINDOW: Final = 10.0
"""Seconds for which a ready target waits for expected ones."""
JOIN_TIMEOUT: Final = 30.0
"""Seconds for which a target that comes late waits for those that are ahead of it."""
WINDOW_CHUNKS: Final = 40
"""Size of the window in chunks."""
_ALONE: Final = 3
"""The same for a single target, so that the chunks stay in the processor's cache."""
_TAKEN: Final = 2
"""Chunks that a request holds at a time: one that is sent, and the next one."""
_POLL_INTERVAL = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Content of a chunk; without runs it is zero."""

    view: memoryview
    runs: tuple[Run, ...]
    leaf: bytes


class ChunkReader(Protocol):
    """Content that is read in chunks; several threads may read a disk, but an archive only in order."""

    def read(self, offset: int, buffer: memoryview) -> Piece | None:
        """Return the content of a chunk, or None at the end; raises source errors."""
        ...


class WindowChunk:
    """Chunk in the window."""

    def __init__(self, reader: ChunkReader, offset: int, buffer: memoryview) -> None:
        self.reader = reader
        self.offset = offset
        self.buffer = buffer
        self.pins = 0
        self.needed: set[Subscriber] = set()
        """Those that are going to take it."""
        self.piece: Piece | None = None
        self.failure: CdiError | None = None
        self.ready = threading.Event()
        self._lock = threading.Lock()
        self._packed: bytes | None = None
        self._tried = False

    @property
    def views(self) -> list[memoryview]:
        """The runs' bytes."""
        assert self.piece is not None
        return [self.piece.view[start:stop] for start, stop in self.piece.runs]

    def packed(self, packer: ChunkCompressor) -> bytes | None:
        """Return the runs' bytes compressed, once for all targets that need it; None if that saves nothing."""
        with self._lock:
            if not self._tried:
                self._packed, self._tried = packer.pack(self.views), True
            return self._packed


@dataclass(eq=False, slots=True)
class Subscriber:
    """One target, as far as the window is concerned."""

    reader: ChunkReader | None = None
    """What it reads; None while it takes no part."""
    floor: int = 0
    """Offset before which it needs nothing."""
    lagged: bool = False
    came: float | None = None
    """When it began to wait for others."""


class SharedWindow:
    """Window of one source.  Thread-safe."""

    def __init__(
        self, expected: int, counted: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create a window for `expected` targets; `counted` is called with the number of bytes read."""
        self._expected = expected
        self._counted = counted
        self._clock = clock
        self._changed = threading.Condition()
        self._chunks: dict[tuple[ChunkReader, int], WindowChunk] = {}
        """In the order in which they were read."""
        self._subscribers: set[Subscriber] = set()
        self._coming: set[Subscriber] = set()
        self._gathered: dict[Subscriber, tuple[ChunkReader, int]] = {}
        """Targets that wait to take part, with what they read from which offset on."""
        self._known = 0
        self._first_at: float | None = None
        """When the first target was ready."""
        self._began_at: float | None = None
        """When reading began."""
        self._stalled = 0.0
        self._stalled_at: float | None = None

    # --- targets ------------------------------------------------------------------------------------------------

    def announce(self, subscriber: Subscriber) -> None:
        """Announce a target that will send requests soon."""
        with self._changed:
            self._known += 1
            self._coming.add(subscriber)

    def withdraw(self, subscriber: Subscriber) -> None:
        """Withdraw the announcement of a target."""
        with self._changed:
            self._coming.discard(subscriber)
            self._changed.notify_all()

    def join(self, subscriber: Subscriber, reader: ChunkReader, start: int, alive: Callable[[], None]) -> None:
        """Have a target take chunks from `start` on.

        Waits, within bounds, for other targets; `alive` is called meanwhile, and what it raises is raised.
        """
        with self._changed:
            self._coming.discard(subscriber)
            if self._first_at is None:
                self._first_at = self._clock()
            self._gathered[subscriber] = reader, start
            self._changed.notify_all()
            try:
                while self._has_to_wait(subscriber):
                    self._changed.wait(_POLL_INTERVAL)
                    alive()
                self._admit(subscriber)
            finally:
                self._gathered.pop(subscriber, None)

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a target that is disconnected or complete, so that no other target waits for it."""
        with self._changed:
            self._subscribers.discard(subscriber)
            self._forget(subscriber)

    def _forget(self, subscriber: Subscriber) -> None:
        subscriber.reader, subscriber.came, subscriber.lagged = None, None, False
        for chunk in self._chunks.values():
            chunk.needed.discard(subscriber)
        self._changed.notify_all()

    def _admit(self, subscriber: Subscriber) -> None:
        """Let a target take part, unless it does already."""
        if subscriber not in self._gathered:
            return
        reader, start = self._gathered.pop(subscriber)
        if subscriber.reader is not reader:
            self._forget(subscriber)
            subscriber.reader = reader
        self._subscribers.add(subscriber)
        self._move(subscriber, start)

    def _has_to_wait(self, subscriber: Subscriber) -> bool:
        now = self._clock()
        assert self._first_at is not None
        if self._began_at is None:
            if (self._coming or self._known < self._expected) and now - self._first_at < GATHER_WINDOW:
                return True
            self._began_at = now
            # All at once: the first one to run must not be far ahead of the others.
            for one in tuple(self._gathered):
                self._admit(one)
            self._changed.notify_all()
        if subscriber not in self._gathered:
            return False
        reader, start = self._gathered[subscriber]
        if subscriber.reader is reader or (reader, start) in self._chunks:
            return False
        if not any(one.reader is reader and one.floor > start for one in self._subscribers):
            return False
        subscriber.came = subscriber.came or now
        return now - subscriber.came < JOIN_TIMEOUT

    def _move(self, subscriber: Subscriber, floor: int) -> None:
        """Note where a target is now."""
        subscriber.floor = floor
        for chunk in self._chunks.values():
            if chunk.offset < floor:
                chunk.needed.discard(subscriber)
        self._changed.notify_all()

    def holds(self, reader: ChunkReader, offset: int) -> bool:
        """Return whether a chunk is in the window."""
        with self._changed:
            return (reader, offset) in self._chunks

    # --- chunks -------------------------------------------------------------------------------------------------

    def chunks(
        self, subscriber: Subscriber, offsets: Iterator[int], alive: Callable[[], None], idle: Callable[[], None]
    ) -> Generator[WindowChunk, None, None]:
        """Yield chunks at ascending offsets to a target that has joined, each valid until the next is requested.

        While the caller uses one, another thread reads the next one.

        Args:
            subscriber: The target.
            offsets: The offsets; those after the end of an archive are ignored.
            alive: Called in the other thread while it waits; what it raises is raised.
            idle: The same for the calling thread.

        Raises:
            CdiError: Reading failed.
        """
        closed, taken = threading.Event(), deque[Future[WindowChunk]]()

        def check() -> None:
            alive()
            if closed.is_set():
                raise Interrupted("the request has ended")

        with ThreadPoolExecutor(1, "read-ahead") as pool:
            try:
                while True:
                    while len(taken) < _TAKEN and (offset := next(offsets, None)) is not None:
                        taken.append(pool.submit(self.take, subscriber, offset, check))
                    if not taken:
                        return
                    while not taken[0].done():
                        if not wait((taken[0],), _POLL_INTERVAL).done:
                            idle()
                    chunk = taken[0].result()
                    if chunk.piece is None:
                        return
                    yield chunk
                    taken.popleft()
                    self.give_back(chunk)
            finally:
                closed.set()
                for one in taken:
                    if not one.cancel() and one.exception() is None:
                        self.give_back(one.result())

    def take(self, subscriber: Subscriber, offset: int, alive: Callable[[], None]) -> WindowChunk:
        """Return a chunk, which the caller gives back; without a piece after the end of an archive."""
        with self._changed:
            reader = subscriber.reader
            if reader is None:
                raise Interrupted("the target has left")
            key = reader, offset
            self._move(subscriber, offset)
            while (chunk := self._chunks.get(key)) is None and (buffer := self._buffer(subscriber)) is None:
                self._note_stall()
                self._changed.wait(_POLL_INTERVAL)
                alive()
            mine = chunk is None
            if chunk is None:
                assert buffer is not None
                chunk = self._chunks[key] = WindowChunk(reader, offset, buffer)
                chunk.needed = self._in_need(chunk)
                self._stalled_at = None
            chunk.pins += 1
            chunk.needed.discard(subscriber)
        try:
            if mine:
                self._read(chunk)
            while not chunk.ready.wait(_POLL_INTERVAL):
                alive()
        except BaseException:
            self.give_back(chunk)
            raise
        if chunk.failure is not None:
            self.give_back(chunk)
            raise chunk.failure
        return chunk

    def give_back(self, chunk: WindowChunk) -> None:
        with self._changed:
            chunk.pins -= 1
            surplus = len(self._chunks) > WINDOW_CHUNKS and not chunk.needed and not chunk.pins
            if surplus or (chunk.ready.is_set() and chunk.piece is None):
                self._remove(chunk)
            self._changed.notify_all()

    def _in_need(self, chunk: WindowChunk) -> set[Subscriber]:
        """Return the targets that are going to take a new chunk."""
        return {
            one
            for one in self._subscribers
            if one.reader is chunk.reader and not one.lagged and one.floor <= chunk.offset
        }

    def _buffer(self, subscriber: Subscriber) -> memoryview | None:
        """Return a free buffer, if need be that of the oldest chunk that no target needs."""
        if len(self._chunks) < (WINDOW_CHUNKS if max(self._known, self._expected) > 1 else _ALONE):
            return aligned_buffer(CHUNK)
        for chunk in self._chunks.values():
            if not chunk.needed and not chunk.pins:
                self._remove(chunk)
                return chunk.buffer
        # A target that lagged, or is alone, reads beside the window.
        return aligned_buffer(CHUNK) if subscriber.lagged or len(self._subscribers) < 2 else None

    def _remove(self, chunk: WindowChunk) -> None:
        if self._chunks.get((chunk.reader, chunk.offset)) is chunk:
            del self._chunks[chunk.reader, chunk.offset]

    def _note_stall(self) -> None:
        """Account for the time for which the window is full, and release the slowest targets beyond the limit."""
        now = self._clock()
        if self._stalled_at is not None:
            self._stalled += now - self._stalled_at
        self._stalled_at = now
        assert self._began_at is not None
        if self._stalled <= MAX_STALL + MAX_STALL_RATIO * (now - self._began_at):
            return
        oldest = next((chunk for chunk in self._chunks.values() if chunk.needed), None)
        for one in tuple(oldest.needed) if oldest is not None else ():
            one.lagged = True
            for chunk in self._chunks.values():
                chunk.needed.discard(one)
        self._stalled, self._stalled_at, self._began_at = 0.0, None, now
        self._changed.notify_all()

    def _read(self, chunk: WindowChunk) -> None:
        try:
            chunk.piece = chunk.reader.read(chunk.offset, chunk.buffer)
            if chunk.piece is not None:
                self._counted(len(chunk.piece.view))
        except CdiError as error:
            chunk.failure = error
        except BaseException as error:
            chunk.failure = InternalError(f"{type(error).__name__}: {error}")
            raise
        finally:
            chunk.ready.set()
