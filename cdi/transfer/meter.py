"""Counting bytes, and what can be told from the count: rate and time to go."""

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
"""Seconds that the rate is taken over."""


class Meter:
    """Thread-safe counters of one transfer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self.phase: Phase = "preparing"
        self.total: int | None = None
        self.done = 0
        self.fetched = 0
        self.note = ""
        self._failure: Failure | None = None
        self._fetched_before_failure = 0
        """`fetched` at the time of the last failed try."""

    def add_fetched(self, size: int) -> None:
        with self._lock:
            self.fetched += size
            if size:
                self._failure = None

    def record_failure(self, error: CdiError, note: str, *, from_start: bool = False) -> None:
        """Count a failed try, after which the transfer waits; with `from_start` it then begins again at its first byte.

        A connection that breaks while bytes flow is mended in place and is no failure of the transfer: it becomes one
        when the next try gives no byte either, or when none had come before.
        """
        with self._lock:
            self.note = note
            if from_start or self.fetched == self._fetched_before_failure:
                self._failure = Failure.of(error)
            self._fetched_before_failure = self.fetched

    def clear_failure(self) -> None:
        """Forget the last failed try and its note: the source answered again."""
        with self._lock:
            self.note = ""
            self._failure = None

    def advance(self, done: int) -> None:
        """The watermark; never backwards unless `restart` was called."""
        with self._lock:
            self.done = max(self.done, done)

    def restart(self, note: str, done: int = 0, *, failure: CdiError | None = None) -> None:
        """Begin again at `done`; `failure` is what ended the try before, if one did."""
        with self._lock:
            self.done = done
            self.note = note
            self._failure = None if failure is None else Failure.of(failure)
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
                note=self.note,
                failure=self._failure,
            )
