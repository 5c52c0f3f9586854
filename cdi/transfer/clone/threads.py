"""Group of threads that run the same function."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cdi.api.errors import Interrupted

THREADS = 3
"""Default number: one thread writes to the volume, one computes, and one uses the connection, in turns."""


def run_workers(work: Callable[[], None], stop: Callable[[], None], threads: int = THREADS) -> None:
    """Call `work` in several threads until all have returned.

    When one raises, `stop` is called, which must end the others. The first failure that is not an interruption is
    raised.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:  # noqa: BLE001 - reraised by the waiting thread
            failures.append(failure)
            stop()

    crew = [threading.Thread(target=run, name=f"copy-{number}", daemon=True) for number in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if failures:
        raise min(failures, key=lambda failure: isinstance(failure, Interrupted))
