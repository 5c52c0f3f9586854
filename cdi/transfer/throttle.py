"""Bandwidth and concurrency limits that can be changed while a transfer runs.

Who came first is served first.  Shared out evenly, a low limit would bring all pieces of a file to their end at the
same time, and a transfer that is killed meanwhile would lose every one of them; so the oldest takes all that its
connection gives, and the others what is left.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdi.api.errors import Interrupted
from cdi.api.job import Limits

_BURST_SECONDS = 0.1
_LOOK_SECONDS = 0.25
"""The longest sleep until the limits are looked at again."""
_YIELD_SECONDS = 0.005
_SPAN = 4 << 20
_STARVED_SECONDS = 30
"""Servers hang up on a client that does not read for a minute, so a low limit is not shared by more connections than
can have `_SPAN` bytes each within this time."""


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
        self._numbers = itertools.count()
        self._credit = 0.0
        """Bytes that may come; below zero, those that came early."""
        self._credited_at = clock()
        self._spending: list[int] = []
        """A heap of the tickets that wait to go on receiving, the oldest first."""
        self._entering: list[int] = []
        """A heap of the tickets that wait for a connection."""
        self._active = 0
        self._slot = threading.Condition()

    @property
    def bandwidth(self) -> int:
        """Bytes per second; 0 is unlimited."""
        return self._limits.bandwidth

    @property
    def connections(self) -> int:
        """Ranges at a time; 0 where that is left to the plan."""
        return self._limits.connections

    def change(self, limits: Limits) -> None:
        """From now on, those that wait already included."""
        with self._lock:
            self._earn(self._limits.bandwidth)
            self._limits = limits
        with self._slot:
            self._slot.notify_all()

    def ticket(self) -> int:
        """A place in the queue, to be kept over the retries of the same bytes."""
        return next(self._numbers)

    def grain(self, wanted: int) -> int:
        """How much to read at once so that a low limit is kept smoothly, bytes."""
        rate = self._limits.bandwidth
        return wanted if rate <= 0 else max(4096, min(wanted, rate // 10))

    def spend(self, size: int, ticket: int) -> None:
        """Account for `size` bytes that were received, and sleep until their turn has come."""
        if self._limits.bandwidth <= 0:
            return
        with self._lock:
            heapq.heappush(self._spending, ticket)
        try:
            while (wait := self._wait(size, ticket)) > 0:
                if self._cancelled.wait(wait):
                    raise Interrupted("the transfer was stopped")
        finally:
            with self._lock:
                self._spending.remove(ticket)
                heapq.heapify(self._spending)

    def _wait(self, size: int, ticket: int) -> float:
        """Take the tokens and give 0, or the seconds until it is worth asking again."""
        with self._lock:
            rate = self._limits.bandwidth
            if rate <= 0:
                return 0.0
            self._earn(rate)
            if self._credit < 0:
                return min(_LOOK_SECONDS, max(-self._credit / rate, _YIELD_SECONDS))
            if self._spending[0] < ticket:
                return _YIELD_SECONDS
            self._credit -= size
            return 0.0

    def _earn(self, rate: int) -> None:
        now = self._clock()
        since, self._credited_at = now - self._credited_at, now
        self._credit = min(self._credit + since * rate, _BURST_SECONDS * rate) if rate > 0 else 0.0

    @contextmanager
    def slot(self, ticket: int) -> Iterator[None]:
        """One of the connections that may be at work."""
        with self._slot:
            heapq.heappush(self._entering, ticket)
            try:
                while self._active >= self._most() or self._entering[0] < ticket:
                    self._slot.wait(_LOOK_SECONDS)
                    if self._cancelled.is_set():
                        raise Interrupted("the transfer was stopped")
                self._active += 1
            finally:
                self._entering.remove(ticket)
                heapq.heapify(self._entering)
                # The next one may be free to enter as well.
                self._slot.notify_all()
        try:
            yield
        finally:
            with self._slot:
                self._active -= 1
                self._slot.notify_all()

    def _most(self) -> float:
        limits = self._limits
        most: float = limits.connections or float("inf")
        if limits.bandwidth > 0:
            most = min(most, max(1, limits.bandwidth * _STARVED_SECONDS // _SPAN))
        return most
