"""The work queue: which keys are due, each of them once, and never two workers on one.

`add` and `take` are plain functions over a clock, so that a test needs neither an event loop nor time; `get` is the one
place that waits.

    (not in it) ── add ──► due or later ── take ──► in work ── done ──► (not in it)
                                  ▲                    │ added meanwhile
                                  └────────────────────┘
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

BASE = 0.5
"""Seconds of the first pause after a failure; each further one is twice as long."""
LONGEST = 60.0
"""The longest pause after a failure, seconds."""


class Queue(Generic[K]):
    """Keys in the order in which they become due.  Belongs to one event loop."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        base: float = BASE,
        longest: float = LONGEST,
    ) -> None:
        """`chance` gives numbers from 0 to 1, which pauses are spread by."""
        self._clock = clock
        self._chance = chance
        self._base = base
        self._longest = longest
        self._order = itertools.count()
        self._heap: list[tuple[float, int, K]] = []
        self._due: dict[K, tuple[float, int]] = {}
        self._working: set[K] = set()
        self._again: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are due or will be, those in work not counted."""
        return len(self._due) + len(self._again)

    @property
    def in_work(self) -> int:
        return len(self._working)

    @property
    def overdue(self) -> int:
        """Keys that nobody has taken yet, although they are due."""
        now = self._clock()
        return sum(moment <= now for moment, _ in self._due.values())

    def add(self, key: K, delay: float = 0.0) -> None:
        """Work on `key` in `delay` seconds, or earlier where it was added for an earlier moment.

        A key that is in work comes again when that work is done, and not before its moment.
        """
        moment = self._clock() + max(0.0, delay)
        if key in self._working:
            self._again[key] = min(moment, self._again.get(key, moment))
            return
        known = self._due.get(key)
        if known is None or moment < known[0]:
            self._put(key, moment)

    def retry(self, key: K) -> float:
        """Add `key` after a failure; gives the pause in seconds, which grows with every call until `forget`.

        Pauses are spread by a quarter either way: a thousand keys that failed together do not come back together.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = min(self._base * 2.0 ** min(failures, 32), self._longest) * (0.75 + self._chance() / 2)
        self.add(key, pause)
        return pause

    def forget(self, key: K) -> None:
        """The work on `key` went well: the next failure is its first."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often `key` failed in a row."""
        return self._failures.get(key, 0)

    def take(self) -> K | None:
        """The key that has been due longest, now in work; None where there is none.  `done` must follow."""
        if (nearest := self._nearest()) is None or nearest > self._clock():
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The work that `take` began has ended, well or not."""
        self._working.discard(key)
        moment = self._again.pop(key, None)
        if moment is not None:
            self._put(key, moment)

    async def get(self) -> K:
        """As `take`, waiting for it."""
        while (key := self.take()) is None:
            self._news.clear()
            nearest = self._nearest()
            pause = None if nearest is None else max(0.0, nearest - self._clock())
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
            except TimeoutError:
                pass
        if self._heap:
            # Whoever waits beside us may have gone to sleep until this key's moment.
            self._news.set()
        return key

    def _put(self, key: K, moment: float) -> None:
        entry = (moment, next(self._order))
        self._due[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        self._news.set()

    def _nearest(self) -> float | None:
        """When the next key is due.  Entries that an earlier moment replaced are dropped on the way."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
