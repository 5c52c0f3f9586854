"""One passage through a source, for all targets that take part in it: each chunk is read once.

    threads that read ──► a window of chunks, in their order ──► a seat for each target, which takes them at its pace

The window has a fixed number of buffers, and a chunk's is used again once the slowest seat is past it.  So who is slow
holds the others back; for a part of the time that is borne (`HELD`), then the seat is lost, and its target goes on
alone.
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
from cdi.transfer.copy.digest import CHUNK, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdi.transfer.copy.pack import Packer

HELD: Final = 5.0
"""Seconds that one slow target may cost the others in all, and `HELD_SHARE` of the time that they take."""
HELD_SHARE: Final = 0.25
_LOOK = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a chunk holds; without runs it is zero."""

    view: memoryview
    runs: tuple[Run, ...]
    leaf: bytes


class Passage(Protocol):
    """A way through a source from some offset to its end."""

    threads: int
    """That may read at once."""

    def next(self) -> int | None:
        """The next chunk's offset; None at the end.  Called by one thread at a time."""
        ...

    def read(self, offset: int, buffer: memoryview) -> Piece | None:
        """None where there is nothing any more.  Raises source errors."""
        ...


class Chunk:
    """One of a reading, in the hands of whoever has a seat."""

    __slots__ = ("_packed", "_tried", "buffer", "lock", "number", "offset", "piece", "pins")

    def __init__(self, number: int, offset: int, buffer: memoryview) -> None:
        self.number = number
        self.offset = offset
        self.buffer = buffer
        self.piece: Piece | None = None
        """None while it is being read."""
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

    def packed(self, packer: Packer) -> bytes | None:
        """Compressed once for all who want it so; None where that does not pay."""
        with self.lock:
            if not self._tried:
                self._packed, self._tried = packer.pack(self.pieces()), True
            return self._packed


class Behind(Exception):
    """A seat was lost to the others' haste."""


class Over(Exception):
    """There are no more chunks."""


class Seat:
    """Of one target, and used by its thread."""

    def __init__(self, reading: Reading, number: int) -> None:
        self.next = number
        """The chunk that is to be taken."""
        self.lost = False
        self._reading = reading

    @contextmanager
    def chunk(self, seconds: float) -> Iterator[Chunk | None]:
        """The next chunk, for as long as the context lasts; None where there is none after `seconds`.

        Raises `Behind`, `Over` after the last one, and what reading raises.
        """
        chunk = self._reading.take(self, seconds)
        try:
            yield chunk
        finally:
            if chunk is not None:
                self._reading.release(self, chunk)

    def leave(self) -> None:
        self._reading.leave(self)


class Reading:
    """Begins with its making, in threads of its own, and ends when there is nothing to read or nobody to read for."""

    def __init__(
        self,
        passage: Passage,
        start: int,
        depth: int,
        *,
        counted: Callable[[int], None],
        ended: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`depth` is the number of chunks in memory; `counted` is told of the bytes that were read."""
        self.over = False
        """Nothing more is read."""
        self._passage = passage
        self._counted = counted
        self._ended = ended
        self._clock = clock
        self._changed = threading.Condition()
        self._free = [aligned_buffer(CHUNK) for _ in range(depth)]
        self._window: deque[Chunk] = deque()
        self._first = 0
        """The number of the first chunk in the window."""
        self._tail = start
        """Everything before it is out of the window."""
        self._made = 0
        self._seats: list[Seat] = []
        self._idle = 0
        """Seats whose targets wait for a chunk."""
        self._failure: CdiError | None = None
        self._began = clock()
        self._held = 0.0
        self._held_since: float | None = None
        self._left = passage.threads

    def begin(self) -> None:
        """Once the first seats are taken."""
        for number in range(self._passage.threads):
            threading.Thread(target=self._run, name=f"read-{number}", daemon=True).start()

    # --- seats --------------------------------------------------------------------------------------------------

    def join(self, cursor: int) -> Seat | None:
        """A seat for who has everything before `cursor`; None where what follows it is out of the window."""
        with self._changed:
            if self._tail > cursor or self._failure is not None or (self._made and not self._seats):
                return None
            seat = Seat(self, self._first)
            self._seats.append(seat)
            return seat

    def leave(self, seat: Seat) -> None:
        with self._changed:
            if seat in self._seats:
                self._seats.remove(seat)
                self._move()

    def take(self, seat: Seat, seconds: float) -> Chunk | None:
        until = self._clock() + seconds
        with self._changed:
            self._idle += 1
            try:
                while True:
                    if seat.lost:
                        raise Behind
                    if seat.next < self._made:
                        chunk = self._window[seat.next - self._first]
                        if chunk.piece is not None:
                            chunk.pins += 1
                            return chunk
                    if self._failure is not None:
                        raise self._failure
                    if self.over and seat.next >= self._made:
                        raise Over
                    left = until - self._clock()
                    if left <= 0:
                        return None
                    self._changed.wait(min(left, _LOOK))
            finally:
                self._idle -= 1

    def release(self, seat: Seat, chunk: Chunk) -> None:
        with self._changed:
            chunk.pins -= 1
            seat.next = chunk.number + 1
            if not seat.lost:
                self._move()

    def _move(self) -> None:
        """Take out of the window what everybody is past."""
        least = min((seat.next for seat in self._seats), default=self._made)
        while self._window and self._window[0].number < least and self._window[0].piece is not None:
            chunk = self._window.popleft()
            self._first, self._tail = chunk.number + 1, max(self._tail, chunk.end)
            # What a lost seat still sends keeps its buffer until then, and another one takes that one's place.
            self._free.append(aligned_buffer(CHUNK) if chunk.pins else chunk.buffer)
        self._changed.notify_all()

    # --- reading ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (chunk := self._begun()) is not None:
                piece = self._passage.read(chunk.offset, chunk.buffer)
                if piece is not None:
                    self._counted(len(piece.view))
                self._done(chunk, piece)
        except BaseException as error:  # noqa: BLE001 - raised again where somebody waits
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

    def _begun(self) -> Chunk | None:
        with self._changed:
            while not self._free and self._wanted():
                self._hold()
                self._changed.wait(_LOOK)
            self._held_since = None
            if not self._wanted():
                return None
            offset = self._passage.next()
            if offset is None:
                self.over = True
                self._changed.notify_all()
                return None
            chunk = Chunk(self._made, offset, self._free.pop())
            self._made += 1
            self._window.append(chunk)
            return chunk

    def _wanted(self) -> bool:
        return bool(self._seats) and self._failure is None and not self.over

    def _done(self, chunk: Chunk, piece: Piece | None) -> None:
        with self._changed:
            if piece is None:
                # A passage with one thread is at its end: this chunk was never there.
                self._window.pop()
                self._made -= 1
                self.over = True
            else:
                chunk.piece = piece
            self._move()

    def _hold(self) -> None:
        """The window is full: whether somebody who could go on waits for somebody who is slow, and for how long."""
        now = self._clock()
        if self._held_since is not None:
            self._held += now - self._held_since
        self._held_since = now if self._idle and len(self._seats) > 1 else None
        if self._held_since is not None and self._held > HELD + HELD_SHARE * (now - self._began):
            least = min(seat.next for seat in self._seats)
            for seat in [seat for seat in self._seats if seat.next == least]:
                seat.lost = True
                self._seats.remove(seat)
            self._held, self._held_since, self._began = 0.0, None, now
            self._move()
