"""An event loop whose clock jumps to the next timer, and the clocks that the controller reads."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import random
import sys
import time
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

START = 1_800_000_000.0
"""Wall clock time at the start of each run, in seconds since the epoch."""
MAX_BUSY_ROUNDS = 20_000
"""Maximum number of rounds of the loop in which time does not pass."""


class Stuck(Exception):
    """Nothing is scheduled, or time does not pass any more."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Event loop without I/O and threads; idle time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self._elapsed = 0.0
        self._busy = 0
        self._selector = self

    def time(self) -> float:
        return self._elapsed

    # --- what BaseEventLoop asks of its selector ------------------------------------------------------------------

    def select(self, timeout: float | None) -> list[Any]:
        """Let `timeout` seconds pass."""
        if timeout is None:
            raise Stuck("no task waits for time to pass")
        if timeout > 0:
            self._elapsed += timeout
            self._busy = 0
        else:
            self._busy += 1
            if self._busy > MAX_BUSY_ROUNDS:
                raise Stuck("tasks run without an end and without waiting")
        return []

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
