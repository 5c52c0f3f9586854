"""A few threads that do the same."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cdi.api.errors import Interrupted

THREADS = 3
"""One writes the volume, one computes, one has the connection, and they take turns."""


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
