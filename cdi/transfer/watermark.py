"""Watermark of a transfer: orders the pieces that several threads write, as the digest and the journal require.

The watermark is the offset before which everything is decoded, written and hashed. A thread that has written its piece
calls `Watermark.commit`, which waits until all earlier pieces are complete, hashes the piece, and advances the
watermark. The oldest piece is always being processed, so no thread waits forever.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

from cdi.api.errors import CdiError, Interrupted
from cdi.transfer.progress import ProgressMeter

CHECKPOINT_INTERVAL = 0.5
CHECKPOINT_BYTES = 32 << 20


class Hash(Protocol):
    """The part of `cdi.verify.hashing.ResumableHash` that is used here."""

    def update(self, view: bytes | memoryview, /) -> None: ...

    def save(self) -> bytes | None: ...


class Watermark:
    """The watermark of one transfer.  Thread-safe.

    `checkpoint(watermark, digest_state)` makes the progress durable. It is called from a separate thread, one call at a
    time, and not after `close` has returned.
    """

    def __init__(
        self,
        start: int,
        digest: Hash | None,
        meter: ProgressMeter,
        cancelled: threading.Event,
        checkpoint: Callable[[int, bytes | None], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest = digest
        self._meter = meter
        self._cancelled = cancelled
        self._checkpoint = checkpoint
        self._clock = clock
        self._turn = threading.Condition()
        self._next = 0
        self._done: dict[int, int] = {}
        self.value = start
        self._failed = False
        self._saved = start
        self._saved_at = clock()
        self._pending: tuple[int, bytes | None] | None = None
        self._closed = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if checkpoint is not None:
            self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
            self._thread.start()

    def commit(self, index: int, view: memoryview, stop: int) -> None:
        """Record that a piece was written; return once `view` may be reused.

        Args:
            index: Number of the piece, from 0.
            view: Its bytes, for the digest.
            stop: Offset in bytes at which it ends.

        Raises:
            Interrupted: The transfer ended in the meantime.
        """
        with self._turn:
            if self._digest is None:
                self._done[index] = stop
                while self._next in self._done:
                    self._advance(self._done.pop(self._next), None)
                return
            while self._next != index:
                self._turn.wait(0.5)
                if self._failed or self._cancelled.is_set():
                    raise Interrupted("the transfer was stopped")
        # Only the thread with the next piece gets here, so the digest needs no lock.
        self._digest.update(view)
        with self._turn:
            state = self._digest.save() if self._due(stop) else None
            self._advance(stop, state)
            self._turn.notify_all()

    def _due(self, stop: int) -> bool:
        return (
            self._checkpoint is not None
            and self._pending is None
            and (stop - self._saved >= CHECKPOINT_BYTES or self._clock() - self._saved_at >= CHECKPOINT_INTERVAL)
        )

    def _advance(self, stop: int, state: bytes | None) -> None:
        due = self._due(stop)
        self._next += 1
        self.value = stop
        self._meter.advance(stop)
        if due and (self._digest is None or state is not None):
            self._pending = (stop, state)
            self._saved, self._saved_at = stop, self._clock()
            self._turn.notify_all()

    def abort(self) -> None:
        """Interrupt the threads that wait for earlier pieces, after one has failed."""
        with self._turn:
            self._failed = True
            self._turn.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.close(final=kind is not None)

    def _run(self) -> None:
        assert self._checkpoint is not None
        while True:
            with self._turn:
                while self._pending is None and not self._closed:
                    self._turn.wait()
                if self._pending is None:
                    return
                pending = self._pending
            try:
                self._checkpoint(*pending)
            except BaseException as error:  # noqa: BLE001 - raised again by close
                self._error = error
            with self._turn:
                self._pending = None

    def close(self, *, final: bool) -> None:
        """Stop the checkpoint thread.

        Raises what a checkpoint raised, for example for a full journal disk, unless the transfer failed anyway.

        Args:
            final: Whether the transfer failed; its progress is then saved.
        """
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and not final:
            raise self._error
        if final and self._checkpoint is not None and self.value > self._saved and self._error is None:
            # Without it the next attempt goes on from an earlier point; the failure that ended this one is what counts.
            with contextlib.suppress(CdiError, OSError):
                self._checkpoint(self.value, None if self._digest is None else self._digest.save())
