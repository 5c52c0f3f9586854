"""A few threads that do the same, and the order of what they hand on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdi.api.errors import Interrupted

THREADS = 3
"""At each end: one reads or writes the volume, one computes, one has the connection, and they take turns."""
_LOOK = 0.25


def work_together(work: Callable[[], None], stop: Callable[[], None], threads: int = THREADS) -> None:
    """Call `work` in so many threads until all have returned.

    When one raises, `stop` is called, upon which the others are to end; the first failure that is no interruption is
    raised.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(failure)
            stop()

    crew = [threading.Thread(target=run, name=f"copy-{number}", daemon=True) for number in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if failures:
        raise min(failures, key=lambda failure: isinstance(failure, Interrupted))


class Turns:
    """Whoever has number n comes after whoever has n - 1; numbers count from 0."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._changed = threading.Condition()
        self._next = 0
        self._stopped = False

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Raises `Interrupted` after `stop`, and what `check` raises."""
        with self._changed:
            while self._next != number and not self._stopped:
                self._changed.wait(_LOOK)
                self._check()
            if self._stopped:
                raise Interrupted("the transfer was stopped")
        yield
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
