"""An event loop whose clock jumps to the next timer, and the clocks that the controller reads."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime as dt
import functools
import heapq
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import Context
from types import FunctionType, ModuleType
from typing import Any

START = 1_800_000_000.0
"""Wall clock time at the start of each run, in seconds since the epoch."""
MAX_BUSY_ROUNDS = 2_000
"""Maximum number of rounds of the loop in which time does not pass."""


class Stuck(Exception):
    """Nothing is scheduled, or time does not pass any more."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Event loop without I/O and threads; idle time passes at once.

    It does what the base class does, without the checks and the rounding of real clocks. Timers of the same moment
    expire in the order in which they were set.
    """

    _ready: collections.deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self._elapsed = 0.0
        self._busy = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serial = 0
        self._selector = self

    def time(self) -> float:
        return self._elapsed

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, handle))
        return handle

    def _run_once(self) -> None:
        """Run what is ready; if nothing is, let time pass until the next timer."""
        ready, timers = self._ready, self._timers
        self._busy += 1
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("no task waits for time to pass")
            if timers[0][0] > self._elapsed:
                self._elapsed = timers[0][0]
                self._busy = 0
        if self._busy > MAX_BUSY_ROUNDS:
            raise Stuck("tasks run without an end and without waiting")
        while timers and timers[0][0] <= self._elapsed:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def shut_down(self) -> None:
        """Cancel all tasks, wait for their end and close the loop."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        self._busy = 0
        if tasks:
            with contextlib.suppress(Stuck):
                self.run_until_complete(asyncio.wait(tasks))
        self.close()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def _process_events(self, events: list[Any]) -> None:
        assert not events

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(  # type: ignore[override]  # one result type less
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run the function at once: there are no threads."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  it is passed on
            future.set_exception(error)
        return future


class Clock:
    """The clocks of one controller's machine; the wall clock may be set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.offset = 0.0
        """Seconds by which the wall clock is ahead of the API server's."""

    def monotonic(self) -> float:
        return self._loop.time()

    def now(self) -> float:
        return START + self._loop.time() + self.offset

    def date(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.now(), dt.UTC)


@contextlib.contextmanager
def clocks(clock: Clock, chance: random.Random) -> Iterator[None]:
    """Replace the clocks and random numbers that `cdi` uses.

    They are defaults of keyword arguments, each bound when its module was imported, and `random`'s own generator.
    """
    replaced = {"now": clock.now, "monotonic": clock.monotonic, "date": clock.date, "random": chance.random}
    places = [(defaults, name, defaults[name], replaced[kind]) for defaults, name, kind in _defaults()]
    state = random.getstate()
    random.seed(chance.random())
    for defaults, name, _, new in places:
        defaults[name] = new
    try:
        yield
    finally:
        for defaults, name, old, _ in places:
            defaults[name] = old
        random.setstate(state)


@functools.cache
def _defaults() -> tuple[tuple[dict[str, Any], str, str], ...]:
    """Return the defaults that are clocks, as (dictionary, argument, kind of clock)."""
    found = []
    for module_name, module in sorted(sys.modules.items()):
        if module_name.startswith("cdi."):
            for function in _functions(module):
                for name, value in (function.__kwdefaults__ or {}).items():
                    kind = _kind(value)
                    if kind is not None:
                        found.append((function.__kwdefaults__, name, kind))
    return tuple(found)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type):
            yield from (one for one in vars(value).values() if isinstance(one, FunctionType))


def _kind(value: object) -> str | None:
    if value is time.time:
        return "now"
    if value is time.monotonic:
        return "monotonic"
    if value == random.random:
        return "random"
    return "date" if isinstance(value, FunctionType) and value.__name__ == "_now" else None
