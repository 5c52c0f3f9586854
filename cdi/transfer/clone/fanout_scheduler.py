"""Fan-out scheduling: targets at nearby offsets share one pass over the source.

A target subscribes at its cursor, the offset before which it has everything. It joins a running pass whose window still
covers the cursor. Otherwise it waits, within bounds, for expected targets or for the end of the running pass, so that
waiting targets share the next pass. A subscriber that was evicted for lagging gets a pass of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cdi.transfer.clone.clone_source import CloneSource
from cdi.transfer.clone.fanout import FanoutReader, Subscription

GATHER_WINDOW: Final = 10.0
"""Seconds for which a ready target waits for expected ones."""
JOIN_TIMEOUT: Final = 30.0
"""Seconds for which a target that cannot join the running pass waits for its end and for others like it."""
WINDOW_CHUNKS: Final = 16
"""Window size in chunks of the first pass."""
EXTRA_WINDOW_CHUNKS: Final = 3
"""Window size in chunks of a pass that runs concurrently with another."""
_POLL_INTERVAL = 0.25


@dataclass(slots=True, kw_only=True, eq=False)
class _WaitingSubscriber:
    """Target that waits for a subscription."""

    source: CloneSource
    cursor: int
    came: float
    subscription: Subscription | None = None


class FanoutScheduler:
    """Scheduler of one source."""

    def __init__(
        self, expected: int, counted: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Configure the scheduler for `expected` targets; `counted` is called with the number of bytes read."""
        self._expected = expected
        self._counted = counted
        self._clock = clock
        self._changed = threading.Condition()
        self._coming: set[object] = set()
        self._known = 0
        self._waiting: list[_WaitingSubscriber] = []
        self._readings: dict[FanoutReader, CloneSource] = {}
        """Passes that further targets may join."""
        self._alone = 0

    def announce(self, target: object) -> None:
        """Announce a target that will subscribe soon."""
        with self._changed:
            self._known += 1
            self._coming.add(target)

    def withdraw(self, target: object) -> None:
        """Withdraw the announcement of a target."""
        with self._changed:
            self._coming.discard(target)
            self._changed.notify_all()

    def subscribe(
        self, target: object, source: CloneSource, cursor: int, alive: Callable[[], None], *, alone: bool
    ) -> Subscription:
        """Return a subscription to a pass over `source` for a target that has everything before `cursor`.

        `alive` is called periodically while waiting; what it raises is raised.
        """
        subscriber = _WaitingSubscriber(source=source, cursor=cursor, came=self._clock())
        with self._changed:
            self._coming.discard(target)
            if alone:
                return self._begin(source, [subscriber], alone=True)
            self._waiting.append(subscriber)
        try:
            while True:
                with self._changed:
                    self._place()
                    if subscriber.subscription is not None:
                        return subscriber.subscription
                    self._changed.wait(_POLL_INTERVAL)
                alive()
        except BaseException:
            if subscriber.subscription is not None:
                subscriber.subscription.leave()
            raise
        finally:
            with self._changed:
                if subscriber in self._waiting:
                    self._waiting.remove(subscriber)

    def _place(self) -> None:
        for subscriber in list(self._waiting):
            for reading, source in self._readings.items():
                if subscriber.subscription is None and source is subscriber.source:
                    subscriber.subscription = reading.join(subscriber.cursor)
        waiting = [subscriber for subscriber in self._waiting if subscriber.subscription is None]
        self._waiting = waiting
        if not waiting:
            return
        waited = self._clock() - waiting[0].came
        if waited < JOIN_TIMEOUT and any(not reading.over for reading in self._readings):
            return
        if waited < GATHER_WINDOW and (self._coming or self._known < self._expected):
            return
        first = waiting[0]
        self._begin(
            first.source, [subscriber for subscriber in waiting if subscriber.source is first.source], alone=False
        )
        self._waiting = [subscriber for subscriber in waiting if subscriber.subscription is None]
        self._changed.notify_all()

    def _begin(self, source: CloneSource, subscribers: list[_WaitingSubscriber], *, alone: bool) -> Subscription:
        start = min(subscriber.cursor for subscriber in subscribers)
        depth = EXTRA_WINDOW_CHUNKS if self._readings or self._alone else WINDOW_CHUNKS
        reading = FanoutReader(
            source.open(start), start, depth, counted=self._counted, ended=lambda: self._ended(reading)
        )
        for subscriber in subscribers:
            subscriber.subscription = reading.join(subscriber.cursor)
        if alone:
            self._alone += 1
        else:
            self._readings[reading] = source
        reading.begin()
        subscription = subscribers[0].subscription
        assert subscription is not None
        return subscription

    def _ended(self, reading: FanoutReader) -> None:
        with self._changed:
            if reading in self._readings:
                del self._readings[reading]
            else:
                self._alone -= 1
            self._changed.notify_all()
