"""Work queue that holds each key once and never hands out a key to two workers, and keeps why each was added.

`add` and `pop_ready` are synchronous and use an injected clock, so that tests, and the supervisor of one machine, need
neither an event loop nor real time; only `get` waits.

    (not queued) ── add ──► due or later ── take ──► in work ── done ──► (not queued)
                                  ▲                    │ added meanwhile
                                  └────────────────────┘
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio

K = TypeVar("K")

BASE = 0.5
"""Seconds of the first backoff after a failure; each further one is twice as long."""
MAX_DELAY = 60.0
"""Maximum backoff in seconds."""
MAX_REASONS = 3
"""Number of reasons that are kept for a key: the first ones, which made it due."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a key was added: an explanation, which has no influence on when the key is due."""

    trigger: str
    """One word of a small set, for metrics: the plural of the changed resource, or what else happened."""
    text: str
    """One sentence for logs, with names."""

    def __str__(self) -> str:
        return self.text


class WorkQueue(Generic[K]):
    """Keys in the order in which they become due; belongs to one event loop or one thread."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        base: float = BASE,
        max_backoff: float = MAX_DELAY,
    ) -> None:
        """Start empty.

        Args:
            clock: Called for monotonic time in seconds.
            jitter: Called for random numbers from 0 to 1, for the jitter of backoffs.
            base: First backoff in seconds.
            max_backoff: Maximum backoff in seconds.

        """
        self._clock = clock
        self._chance = jitter
        self._base = base
        self._longest = max_backoff
        self._order = itertools.count()
        self._heap: list[tuple[float, int, K]] = []
        self._due: dict[K, tuple[float, int]] = {}
        self._working: set[K] = set()
        self._dirty: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._reasons: dict[K, tuple[Reason, ...]] = {}
        """Reasons of keys that are due or will be; of a key in work, those of its next turn."""
        self._taken: dict[K, tuple[Reason, ...]] = {}
        """Reasons of keys in work."""
        self._turn: asyncio.Lock | None = None
        """Held by the waiter whose turn it is; created by the first `get`."""
        self._news: asyncio.Event | None = None
        """Set when a key becomes due; created by the first `get`."""

    def __len__(self) -> int:
        """Return the number of keys that are due or will be, without those in work."""
        return len(self._due) + len(self._dirty)

    @property
    def processing(self) -> int:
        return len(self._working)

    @property
    def ready(self) -> int:
        """Number of keys that are due and have not been taken yet."""
        now = self._clock()
        return sum(moment <= now for moment, _ in self._due.values())

    def add(self, key: K, delay: float = 0.0, *, reason: Reason | None = None) -> None:
        """Make `key` due in `delay` seconds, or earlier if it is already due earlier.

        A key that is in work becomes due again after `done`, and not before that time.
        """
        moment = self._clock() + max(0.0, delay)
        if key in self._working:
            planned = self._dirty.get(key)
            self._keep(key, reason, earlier=planned is None or moment < planned, at_once=delay <= 0)
            self._dirty[key] = moment if planned is None else min(moment, planned)
            return
        known = self._due.get(key)
        earlier = known is None or moment < known[0]
        self._keep(key, reason, earlier=earlier, at_once=delay <= 0)
        if earlier:
            self._put(key, moment)

    def reasons(self, key: K) -> tuple[Reason, ...]:
        """Return why a key in work became due, oldest first and at most `MAX_REASONS`; empty if it is not in work."""
        return self._taken.get(key, ())

    def retry(self, key: K, *, reason: Reason | None = None) -> float:
        """Add `key` after a failure and return the backoff in seconds, which grows with every call until `forget`.

        A jitter of a quarter in both directions keeps a thousand keys that failed together from being due together.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = min(self._base * 2.0 ** min(failures, 32), self._longest) * (0.75 + self._chance() / 2)
        self.add(key, pause, reason=reason)
        return pause

    def forget(self, key: K) -> None:
        """Reset the backoff of `key` after a success."""
        self._failures.pop(key, None)

    def next_due(self) -> float | None:
        """Return the moment of the clock at which the next key is due; None if there is no key."""
        # Entries that were replaced by an earlier time are dropped.
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_ready(self) -> K | None:
        """Take the key that has been due longest, or return None; `done` must be called for it afterwards."""
        if (nearest := self.next_due()) is None or nearest > self._clock():
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._working.add(key)
        self._taken[key] = self._reasons.pop(key, ())
        return key

    def done(self, key: K) -> None:
        """Mark the work on a taken key as ended, successful or not."""
        self._working.discard(key)
        self._taken.pop(key, None)
        moment = self._dirty.pop(key, None)
        if moment is not None:
            self._put(key, moment)

    async def get(self) -> K:
        """Wait until a key is due and take it."""
        import asyncio  # here, as the commands of one machine start faster without it

        if self._turn is None:
            self._turn, self._news = asyncio.Lock(), asyncio.Event()
        assert self._news is not None
        # Only the first waiter waits for a key, so that a key wakes one of them and not all.
        async with self._turn:
            # A key that is due again whenever it is done must not keep other tasks from running.
            await asyncio.sleep(0)
            while (key := self.pop_ready()) is None:
                self._news.clear()
                nearest = self.next_due()
                pause = None if nearest is None else max(0.0, nearest - self._clock())
                try:
                    async with asyncio.timeout(pause):
                        await self._news.wait()
                except TimeoutError:
                    pass
            return key

    def _keep(self, key: K, reason: Reason | None, *, earlier: bool, at_once: bool) -> None:
        """Keep a reason unless the key is due anyway before the moment that the reason asks for."""
        if earlier:
            self._reasons[key] = (reason,) if reason is not None else ()
        elif at_once and reason is not None:
            known = self._reasons.get(key, ())
            if len(known) < MAX_REASONS and reason not in known:
                self._reasons[key] = (*known, reason)

    def _put(self, key: K, moment: float) -> None:
        entry = (moment, next(self._order))
        self._due[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        if self._news is not None:
            self._news.set()
