"""How long passing faults are waited out, the same for opening a source and for reading it.

What is waited for is reported with the progress (`cdi.api.job.Progress.failure`), so that whoever looks sees a failure.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cdi.api.errors import CdiError, Interrupted, Retry, SourceChanged, SourceUnavailable
from cdi.api.job import Policy
from cdi.transfer.meter import Meter

_LOOK_SECONDS = 0.1
"""The longest until a cancellation is seen."""
_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_T = TypeVar("_T")


def _let_go(found: object) -> None:
    """There is nothing to close."""


class Patience:
    """The policy's budget: so many failures in a row, each waited for longer than the one before.  Any thread."""

    def __init__(
        self,
        *,
        policy: Policy,
        meter: Meter,
        cancelled: threading.Event,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives 0 to 1, so that many workers do not come back at the same moment."""
        self._policy = policy
        self._meter = meter
        self._cancelled = cancelled
        self._jitter = jitter

    def check(self) -> None:
        """Raises `Interrupted` once the transfer was cancelled."""
        if self._cancelled.is_set():
            raise Interrupted("the transfer was stopped")

    def pause(self, failure: CdiError, failures: int) -> None:
        """Wait before the next try, `failures` being how many there were in a row; raise `failure` where there is none.

        Not shorter than a server's Retry-After.  Raises `Interrupted` when cancelled.
        """
        self.check()
        if isinstance(failure, Interrupted):
            raise failure
        if failure.retry is not Retry.BACKOFF or isinstance(failure, SourceChanged) or failures > self._policy.retries:
            raise failure
        seconds = _PAUSES[min(failures, len(_PAUSES)) - 1] * (0.5 + self._jitter())
        if isinstance(failure, SourceUnavailable) and failure.retry_after is not None:
            seconds = max(seconds, failure.retry_after)
        self._meter.record_failure(failure, f"waiting {seconds:.0f} s: {failure.code}: {failure.what}")
        if self._cancelled.wait(seconds):
            raise Interrupted("the transfer was stopped")

    def insist(self, act: Callable[[], _T], late: Callable[[_T], object] = _let_go) -> _T:
        """What `act` gives, tried again as often as the budget allows; `aside`."""
        failures = 0
        while True:
            try:
                found = self.aside(act, late)
            except CdiError as failure:
                failures += 1
                self.pause(failure, failures)
            else:
                if failures:
                    self._meter.clear_failure()
                return found

    def aside(self, act: Callable[[], _T], late: Callable[[_T], object] = _let_go) -> _T:
        """What `act` gives, in a thread of its own, which is left to itself when the transfer is cancelled.

        For what nobody can interrupt: names that are looked up, and credentials, which libraries ask for in their own
        way.  `late` is called with what `act` gives when nobody waits for it any more.  Raises what `act` raises, and
        `Interrupted` when cancelled.
        """
        self.check()
        errand = _Errand(act, late)
        threading.Thread(target=errand.run, name="aside", daemon=True).start()
        try:
            while not errand.done.wait(_LOOK_SECONDS):
                self.check()
        except BaseException:
            errand.leave()
            raise
        return errand.result()


class _Errand(Generic[_T]):
    """One call, made by one thread for another that may go away."""

    def __init__(self, act: Callable[[], _T], late: Callable[[_T], object]) -> None:
        self.done = threading.Event()
        self._act = act
        self._late = late
        self._found: list[_T] = []
        self._failure: BaseException | None = None
        self._left = False
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            self._found.append(self._act())
        except BaseException as failure:  # noqa: BLE001 - raised again in the thread that waits
            self._failure = failure
        with self._lock:
            self.done.set()
            left = self._left
        if left:
            self._close()

    def leave(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._left = True
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
