"""Bandwidth and concurrency limits that can be changed while a transfer runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cdi.api.errors import Interrupted
from cdi.api.job import Limits

_BURST_SECONDS = 0.1


class Throttle:
    """A token bucket over all connections of a transfer, and a cap on how many of them are at work.

    `cancelled` ends every wait at once with `Interrupted`.
    """

    def __init__(
        self,
        limits: Limits,
        cancelled: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._cancelled = cancelled
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()
        self._active = 0
        self._slot = threading.Condition()

    @property
    def bandwidth(self) -> int:
        """Bytes per second; 0 is unlimited."""
        return self._limits.bandwidth

    def change(self, limits: Limits) -> None:
        self._limits = limits
        with self._slot:
            self._slot.notify_all()

    def spend(self, size: int) -> None:
        """Account for `size` bytes that were received, and sleep for as long as they were early."""
        rate = self._limits.bandwidth
        if rate <= 0:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + size / rate
            wait = self._free_at - now
        if wait > 0 and self._cancelled.wait(wait):
            raise Interrupted("the transfer was stopped")

    def grain(self, wanted: int) -> int:
        """How much to read at once so that a low limit is kept smoothly, bytes."""
        rate = self._limits.bandwidth
        return wanted if rate <= 0 else max(4096, min(wanted, rate // 10))

    def __enter__(self) -> None:
        with self._slot:
            while self._limits.connections and self._active >= self._limits.connections:
                self._slot.wait(0.2)
                if self._cancelled.is_set():
                    raise Interrupted("the transfer was stopped")
            self._active += 1

    def __exit__(self, *exc: object) -> None:
        with self._slot:
            self._active -= 1
            self._slot.notify()
