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

from cdi.transfer.copy.reading import Reading, Seat
from cdi.transfer.copy.supply import Supply

GATHER: Final = 10.0
"""Seconds for which a ready target waits for expected ones."""
LATE: Final = 30.0
"""Seconds for which a target that cannot join the running pass waits for its end and for others like it."""
DEPTH: Final = 16
"""Window size in chunks of the first pass."""
DEPTH_BESIDE: Final = 3
"""Window size in chunks of a pass that runs concurrently with another."""
_LOOK = 0.25


@dataclass(slots=True, kw_only=True, eq=False)
class _Guest:
    """Target that waits for a subscription."""

    supply: Supply
    cursor: int
    came: float
    seat: Seat | None = None


class Hall:
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
        self._guests: list[_Guest] = []
        self._readings: dict[Reading, Supply] = {}
        """Passes that further targets may join."""
        self._alone = 0

    def expect(self, target: object) -> None:
        """Announce a target that will subscribe soon."""
        with self._changed:
            self._known += 1
            self._coming.add(target)

    def expect_no_more(self, target: object) -> None:
        """Withdraw the announcement of a target."""
        with self._changed:
            self._coming.discard(target)
            self._changed.notify_all()

    def seat(self, target: object, supply: Supply, cursor: int, alive: Callable[[], None], *, alone: bool) -> Seat:
        """Return a subscription to a pass over `supply` for a target that has everything before `cursor`.

        `alive` is called periodically while waiting; what it raises is raised.
        """
        guest = _Guest(supply=supply, cursor=cursor, came=self._clock())
        with self._changed:
            self._coming.discard(target)
            if alone:
                return self._begin(supply, [guest], alone=True)
            self._guests.append(guest)
        try:
            while True:
                with self._changed:
                    self._place()
                    if guest.seat is not None:
                        return guest.seat
                    self._changed.wait(_LOOK)
                alive()
        except BaseException:
            if guest.seat is not None:
                guest.seat.leave()
            raise
        finally:
            with self._changed:
                if guest in self._guests:
                    self._guests.remove(guest)

    def _place(self) -> None:
        for guest in list(self._guests):
            for reading, supply in self._readings.items():
                if guest.seat is None and supply is guest.supply:
                    guest.seat = reading.join(guest.cursor)
        waiting = [guest for guest in self._guests if guest.seat is None]
        self._guests = waiting
        if not waiting:
            return
        waited = self._clock() - waiting[0].came
        if waited < LATE and any(not reading.over for reading in self._readings):
            return
        if waited < GATHER and (self._coming or self._known < self._expected):
            return
        first = waiting[0]
        self._begin(first.supply, [guest for guest in waiting if guest.supply is first.supply], alone=False)
        self._guests = [guest for guest in waiting if guest.seat is None]
        self._changed.notify_all()

    def _begin(self, supply: Supply, guests: list[_Guest], *, alone: bool) -> Seat:
        start = min(guest.cursor for guest in guests)
        depth = DEPTH_BESIDE if self._readings or self._alone else DEPTH
        reading = Reading(
            supply.passage(start), start, depth, counted=self._counted, ended=lambda: self._ended(reading)
        )
        for guest in guests:
            guest.seat = reading.join(guest.cursor)
        if alone:
            self._alone += 1
        else:
            self._readings[reading] = supply
        reading.begin()
        seat = guests[0].seat
        assert seat is not None
        return seat

    def _ended(self, reading: Reading) -> None:
        with self._changed:
            if reading in self._readings:
                del self._readings[reading]
            else:
                self._alone -= 1
            self._changed.notify_all()
