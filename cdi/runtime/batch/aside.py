"""Work in threads that nobody waits for when the command ends, so that ctrl-C waits for no server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from cdi.api.errors import CdiError

_AT_A_TIME = 8
_MOST_THREADS = 64
S = TypeVar("S")
T = TypeVar("T")


def aside(act: Callable[[], T]) -> Future[T]:
    """Call `act` in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001  handed over to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="batch", daemon=True).start()
    return future


def each_aside(ask: Callable[[S], T], items: Sequence[S]) -> Iterator[tuple[S, T | CdiError]]:
    """What `ask` gives or raises, in the order of `items`; some of them are asked at the same time."""
    gate = threading.BoundedSemaphore(_AT_A_TIME)

    def guarded(item: S) -> T:
        with gate:
            return ask(item)

    # A thread waits for its turn, so that ctrl-C waits for none of them.
    for start in range(0, len(items), _MOST_THREADS):
        futures = [(item, aside(partial(guarded, item))) for item in items[start : start + _MOST_THREADS]]
        for item, future in futures:
            try:
                yield item, future.result()
            except CdiError as error:
                yield item, error
