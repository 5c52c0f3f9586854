"""How long passing faults are waited out, the same for opening a source and for reading it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from cdi.api.errors import CdiError, Interrupted, Retry, SourceChanged, SourceUnavailable
from cdi.api.job import Policy
from cdi.transfer.meter import Meter

_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_T = TypeVar("_T")


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
        self._meter.note = f"waiting {seconds:.0f} s: {failure.code}: {failure.what}"
        if self._cancelled.wait(seconds):
            raise Interrupted("the transfer was stopped")

    def insist(self, act: Callable[[], _T]) -> _T:
        """What `act` gives, tried again as often as the budget allows."""
        failures = 0
        while True:
            try:
                found = act()
            except CdiError as failure:
                failures += 1
                self.pause(failure, failures)
            else:
                if failures:
                    self._meter.note = ""
                return found
