"""Work in a thread, watched from the main thread: progress is shown, and an interrupt stops it in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cdi.api.job import Progress
from cdi.transfer.control import Control

T = TypeVar("T")
OnProgress = Callable[[Progress], None]
TICK = 0.2
"""Seconds between two looks."""


class _Work(threading.Thread, Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(name="work")
        self._work = work
        self.found: list[T] = []
        self.failure: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self.found.append(self._work())
        except BaseException as failure:  # noqa: BLE001 - raised again by whoever waits
            self.failure = failure
        finally:
            self.ended.set()


def watched(work: Callable[[], T], control: Control, on_progress: OnProgress | None = None) -> T:
    """What `work` gives or raises; `on_progress` is called a few times a second meanwhile.

    An exception that comes to this thread (KeyboardInterrupt) cancels `control`; the work ends before it is passed on.
    """
    thread = _Work(work)
    thread.start()
    try:
        while not thread.ended.wait(TICK):
            if on_progress is not None:
                on_progress(control.progress())
    except BaseException:
        control.cancel()
        raise
    finally:
        thread.join()
    if thread.failure is not None:
        raise thread.failure
    return thread.found[0]
