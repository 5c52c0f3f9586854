"""State shared by all parts of a running transfer: cancellation, limits, counters, retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from cdi.api.job import Limits, Progress
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.rate_limit import RateLimiter
from cdi.transfer.retry import RetryBudget

if TYPE_CHECKING:
    from cdi.api.copy import AnyJob
    from cdi.api.poll import PollJob

_CANCEL_INTERVAL = 0.1
"""Maximum time in seconds until `TransferControl.run_abandonable` notices a cancellation."""
_T = TypeVar("_T")


class TransferControl:
    """Handle to observe, limit and cancel a transfer.  Thread-safe."""

    def __init__(self, job: AnyJob | PollJob) -> None:
        self.cancelled = threading.Event()
        self.validated = threading.Event()
        """Set once the content is complete, and validated as far as it can be before the disk is finished."""
        self.meter = ProgressMeter()
        self.retries = RetryBudget(job.policy.retries, meter=self.meter, cancelled=self.cancelled)
        self.throttle = RateLimiter(Limits(bandwidth=job.policy.bandwidth), self.cancelled)
        self.written: Callable[[], int] = int
        """Returns the number of bytes written to the target so far."""
        self._on_cancel: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @contextmanager
    def cancelling(self, act: Callable[[], None]) -> Iterator[None]:
        """Call `act` if the transfer is cancelled while the context is open; at once if it already is."""
        with self._lock:
            self._on_cancel.append(act)
        try:
            if self.cancelled.is_set():
                act()
            yield
        finally:
            with self._lock:
                self._on_cancel.remove(act)

    def run_abandonable(self, act: Callable[[], _T], late: Callable[[_T], object] = lambda _: None) -> _T:
        """Call `act` in a thread that is abandoned when the transfer is cancelled, and return its result.

        The whole set-up of an attempt is one such call, as it may resolve names, which cannot be interrupted, and use
        libraries that fetch credentials.

        Args:
            act: The function to call; what it raises is raised here.
            late: Called with a result that `act` returns after it was abandoned.

        Raises:
            Interrupted: The transfer was cancelled.
        """
        self.retries.check()
        call = _AbandonableCall(act, late)
        threading.Thread(target=call.run, name="setup", daemon=True).start()
        try:
            while not call.done.wait(_CANCEL_INTERVAL):
                self.retries.check()
        except BaseException:
            call.abandon()
            raise
        return call.result()

    def cancel(self) -> None:
        """Request the transfer to stop; it leaves a journal from which a later run can resume."""
        self.cancelled.set()
        with self._lock:
            acts = list(self._on_cancel)
        for act in acts:
            act()

    def begin_finishing(self, phase: Literal["converting", "flushing"]) -> None:
        """Enter a phase in which the disk is finished, because its content has been validated."""
        self.meter.phase = phase
        self.validated.set()

    def limit(self, limits: Limits) -> None:
        self.throttle.change(limits)

    def progress(self) -> Progress:
        return self.meter.snapshot(self.written())


class _AbandonableCall(Generic[_T]):
    """A call in a thread whose caller may stop waiting for the result."""

    def __init__(self, act: Callable[[], _T], late: Callable[[_T], object]) -> None:
        self.done = threading.Event()
        self._act = act
        self._late = late
        self._found: list[_T] = []
        self._failure: BaseException | None = None
        self._abandoned = False
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            self._found.append(self._act())
        except BaseException as failure:  # noqa: BLE001 - raised again in the thread that waits
            self._failure = failure
        with self._lock:
            self.done.set()
            abandoned = self._abandoned
        if abandoned:
            self._close()

    def abandon(self) -> None:
        """Have the result closed, at once or as soon as the call returns."""
        with self._lock:
            self._abandoned = True
            done = self.done.is_set()
        if done:
            self._close()

    def _close(self) -> None:
        for found in self._found:
            self._late(found)

    def result(self) -> _T:
        if self._failure is not None:
            raise self._failure
        return self._found[0]
