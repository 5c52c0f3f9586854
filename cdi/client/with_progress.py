"""Execution of work in a thread: the main thread shows progress, and an interrupt cancels the work cleanly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cdi.api.job import Progress
from cdi.transfer.control import TransferControl

T = TypeVar("T")
OnProgress = Callable[[Progress], None]
TICK = 0.2
"""Seconds between two calls of `on_progress`."""


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
        except BaseException as failure:  # noqa: BLE001 - raised again in the waiting thread
            self.failure = failure
        finally:
            self.ended.set()


def run_with_progress(work: Callable[[], T], control: TransferControl, on_progress: OnProgress | None = None) -> T:
    """Run `work` in a thread and return its result; call `on_progress` a few times a second meanwhile.

    An exception in this thread (KeyboardInterrupt) cancels `control`; it is raised after the work has ended.
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
