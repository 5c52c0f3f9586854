"""Bandwidth and concurrency limits that can be changed while a transfer runs.

Waiting requests are served in order, oldest first. If a low bandwidth were shared evenly, all pieces of a file would
complete at the same time, and a transfer that is killed before would lose all of them. So the oldest request uses all
that its connection delivers, and the others use the rest.
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

_BURST_INTERVAL = 0.1
_POLL_INTERVAL = 0.25
"""Maximum time in seconds until changed limits take effect."""
_YIELD_DELAY = 0.005
_SPAN = 4 << 20
_STARVATION_TIMEOUT = 30
"""Time in seconds within which each connection must be able to receive `_SPAN` bytes.

A low bandwidth limits the number of connections accordingly, because servers close a connection if the client does not
read for a minute.
"""


class RateLimiter:
    """Token bucket over all connections of a transfer, and a limit on the number of active ones.

    Setting `cancelled` ends every wait with `Interrupted`.
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
        """Bytes that may be received; if negative, bytes received in advance."""
        self._credited_at = clock()
        self._spending: list[int] = []
        """Heap of the tickets that wait to continue receiving, the oldest first."""
        self._entering: list[int] = []
        """Heap of the tickets that wait for a connection, the oldest first."""
        self._active = 0
        self._slot = threading.Condition()

    @property
    def bandwidth(self) -> int:
        """The limit in bytes per second; 0 is unlimited."""
        return self._limits.bandwidth

    @property
    def connections(self) -> int:
        """The maximum number of concurrent range requests; 0 if the plan decides."""
        return self._limits.connections

    def change(self, limits: Limits) -> None:
        """Set new limits, which also apply to requests that already wait."""
        with self._lock:
            self._refill(self._limits.bandwidth)
            self._limits = limits
        with self._slot:
            self._slot.notify_all()

    def priority(self) -> int:
        """Return a position in the queue; retries of the same bytes keep it."""
        return next(self._numbers)

    def max_read(self, wanted: int) -> int:
        """Return how many bytes to read at once, so that a low limit gives an even flow."""
        rate = self._limits.bandwidth
        return wanted if rate <= 0 else max(4096, min(wanted, rate // 10))

    def consume(self, size: int, ticket: int) -> None:
        """Account for `size` received bytes; block until the bandwidth limit allows them."""
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
        """Take the tokens and return 0, or return the seconds to wait before the next call."""
        with self._lock:
            rate = self._limits.bandwidth
            if rate <= 0:
                return 0.0
            self._refill(rate)
            if self._credit < 0:
                return min(_POLL_INTERVAL, max(-self._credit / rate, _YIELD_DELAY))
            if self._spending[0] < ticket:
                return _YIELD_DELAY
            self._credit -= size
            return 0.0

    def _refill(self, rate: int) -> None:
        now = self._clock()
        since, self._credited_at = now - self._credited_at, now
        self._credit = min(self._credit + since * rate, _BURST_INTERVAL * rate) if rate > 0 else 0.0

    @contextmanager
    def slot(self, ticket: int) -> Iterator[None]:
        """Wait for a free connection and occupy it while the context is open."""
        with self._slot:
            heapq.heappush(self._entering, ticket)
            try:
                while self._active >= self._max_active() or self._entering[0] < ticket:
                    self._slot.wait(_POLL_INTERVAL)
                    if self._cancelled.is_set():
                        raise Interrupted("the transfer was stopped")
                self._active += 1
            finally:
                self._entering.remove(ticket)
                heapq.heapify(self._entering)
                # Another connection may be free for the next ticket.
                self._slot.notify_all()
        try:
            yield
        finally:
            with self._slot:
                self._active -= 1
                self._slot.notify_all()

    def _max_active(self) -> float:
        limits = self._limits
        most: float = limits.connections or float("inf")
        if limits.bandwidth > 0:
            most = min(most, max(1, limits.bandwidth * _STARVATION_TIMEOUT // _SPAN))
        return most
