"""Counting bytes, and what can be told from the count: rate and time to go."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from cdi.api.job import Progress

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

    def add_fetched(self, size: int) -> None:
        with self._lock:
            self.fetched += size

    def advance(self, done: int) -> None:
        """The watermark; never backwards unless `restart` was called."""
        with self._lock:
            self.done = max(self.done, done)

    def restart(self, note: str, done: int = 0) -> None:
        with self._lock:
            self.done = done
            self.note = note
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
            )
