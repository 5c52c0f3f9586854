"""Progress of a transfer: byte counters, transfer rate and estimated time left."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from cdi.api.errors import CdiError
from cdi.api.job import Failure, Progress

Phase = Literal["preparing", "transferring", "converting", "verifying", "flushing", "done"]

_WINDOW = 10.0
"""Period in seconds over which the rate is averaged."""


class ProgressMeter:
    """Progress counters of one transfer.  Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self.phase: Phase = "preparing"
        self.total: int | None = None
        self.done = 0
        self.fetched = 0
        self.message = ""
        self._failure: Failure | None = None
        self._fetched_before_failure = 0
        """`fetched` at the time of the last failed attempt."""

    def add_fetched(self, size: int) -> None:
        with self._lock:
            self.fetched += size
            if size:
                self._failure = None

    def record_failure(self, error: CdiError, note: str, *, from_start: bool = False) -> None:
        """Record a failed attempt, after which the transfer waits.

        A connection that breaks after it has received bytes is continued in place and does not count as a failure of
        the transfer. It does if no byte was received since the last failed attempt, or at all.

        Args:
            error: What the attempt failed with.
            note: Text that is shown while the transfer waits.
            from_start: Whether the transfer then starts again at its first byte.
        """
        with self._lock:
            self.message = note
            if from_start or self.fetched == self._fetched_before_failure:
                self._failure = Failure.from_error(error)
            self._fetched_before_failure = self.fetched

    def clear_failure(self) -> None:
        """Clear the last failed attempt and its note, after the source has answered."""
        with self._lock:
            self.message = ""
            self._failure = None

    def advance(self, done: int) -> None:
        """Set the number of bytes done; it never decreases, except by `restart`."""
        with self._lock:
            self.done = max(self.done, done)

    def restart(self, note: str, done: int = 0, *, failure: CdiError | None = None) -> None:
        """Start again at `done` bytes; `failure` is what ended the previous attempt, if there was one."""
        with self._lock:
            self.done = done
            self.message = note
            self._failure = None if failure is None else Failure.from_error(failure)
            self._fetched_before_failure = self.fetched
            self._samples.clear()
            self._samples.append((self._clock(), done))

    def snapshot(self, written: int) -> Progress:
        with self._lock:
            now = self._clock()
            self._samples.append((now, self.done))
            while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW:
                self._samples.popleft()
            began, base = self._samples[0]
            rate = (self.done - base) / (now - began) if now > began else 0.0
            left = None if self.total is None else self.total - self.done
            eta = left / rate if left is not None and rate > 0 and self.phase != "done" else None
            return Progress(
                phase=self.phase,
                done=self.done,
                total=self.total,
                written=written,
                fetched=self.fetched,
                rate=round(max(rate, 0.0), 1),
                eta=None if eta is None else round(eta, 1),
                note=self.message,
                failure=self._failure,
            )
