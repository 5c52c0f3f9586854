"""Background threads that the command does not join at its end, so that Ctrl-C waits for no server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from cdi.api.errors import CdiError

_AT_A_TIME = 8
_MAX_THREADS = 64
S = TypeVar("S")
T = TypeVar("T")


def run_in_background(act: Callable[[], T]) -> Future[T]:
    """Call `act` in a thread of its own and return its future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001  stored in the future
            future.set_exception(error)

    threading.Thread(target=run, name="batch", daemon=True).start()
    return future


def map_in_background(ask: Callable[[S], T], items: Sequence[S]) -> Iterator[tuple[S, T | CdiError]]:
    """Yield the result or error of `ask` for each item, in their order; several calls run concurrently."""
    gate = threading.BoundedSemaphore(_AT_A_TIME)

    def guarded(item: S) -> T:
        with gate:
            return ask(item)

    # Limits are enforced by threads that wait, not by this one, so that Ctrl-C waits for none of them.
    for start in range(0, len(items), _MAX_THREADS):
        futures = [(item, run_in_background(partial(guarded, item))) for item in items[start : start + _MAX_THREADS]]
        for item, future in futures:
            try:
                yield item, future.result()
            except CdiError as error:
                yield item, error
