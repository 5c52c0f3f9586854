"""Who reads with whom: targets that can do with the same chunks have a seat in the same reading.

A target comes in with a cursor, before which it has everything.  It joins a reading that has not let go of what follows
the cursor; else it waits, so that others who wait have the next one with it: for those that are about to come, for the
end of the one that is under way, but for neither without bound.  Who lost a seat is read for alone.
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
"""Seconds that whoever is ready waits for those that are about to come."""
LATE: Final = 30.0
"""Seconds that who came too late waits for the end of a reading that is under way, and for others like it."""
DEPTH: Final = 16
"""Chunks in memory of the first reading."""
DEPTH_BESIDE: Final = 3
"""Of one that runs beside another."""
_LOOK = 0.25


@dataclass(slots=True, kw_only=True, eq=False)
class _Guest:
    """Waits for a seat."""

    supply: Supply
    cursor: int
    came: float
    seat: Seat | None = None


class Hall:
    """Of one source."""

    def __init__(
        self, expected: int, counted: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`expected` targets are about to come; `counted` is told of the bytes that were read."""
        self._expected = expected
        self._counted = counted
        self._clock = clock
        self._changed = threading.Condition()
        self._coming: set[object] = set()
        self._known = 0
        self._guests: list[_Guest] = []
        self._readings: dict[Reading, Supply] = {}
        """That others may join."""
        self._alone = 0

    def expect(self, target: object) -> None:
        """It is about to come."""
        with self._changed:
            self._known += 1
            self._coming.add(target)

    def expect_no_more(self, target: object) -> None:
        """It does not come soon."""
        with self._changed:
            self._coming.discard(target)
            self._changed.notify_all()

    def seat(self, target: object, supply: Supply, cursor: int, alive: Callable[[], None], *, alone: bool) -> Seat:
        """A seat in a reading of `supply`, for a target that is here, and has all before `cursor`.

        Raises what `alive` raises, which is called now and then.
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
