"""Retries of one transfer: one budget and one backoff schedule for all requests to its source.

Opening a source, probing, reading and restarting it, and the requests to a registry all spend the same budget:
``policy.retries`` failures in a row, after which the error is raised. Content received beyond the furthest earlier
attempt refills the budget. A successful request alone does not: otherwise a server that answers every probe and breaks
off every download at its first byte would be retried without end.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from cdi.api.errors import CdiError, Interrupted, PeerUnreachable, Retry, SourceChanged, SourceUnavailable
from cdi.transfer.progress import ProgressMeter

LOG = logging.getLogger(__name__)
_BACKOFF = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds to wait before each retry in a row; the last value applies to all further retries."""
_MIN_RESTART_PROGRESS = 16 << 20
"""Bytes by which a restarted attempt must exceed the furthest earlier attempt to refill the budget.

Otherwise a server that sends one more byte each time would cause as many downloads as the content has bytes.
"""
_T = TypeVar("_T")


class RestartRequired(Exception):
    """Loss of a stream that cannot be continued where it broke with `cause` and must be read from its first byte."""

    def __init__(self, cause: CdiError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class RetryBudget:
    """The retries that one transfer has left, and the exponential backoff with jitter between them.  Thread-safe."""

    def __init__(
        self,
        retries: int,
        *,
        meter: ProgressMeter,
        cancelled: threading.Event,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Create a full budget.

        Args:
            retries: Number of failures in a row that are retried.
            meter: Counts the fetched content, whose progress refills the budget.
            cancelled: Ends every wait with `Interrupted`.
            jitter: Returns a number from 0 to 1, so that many workers do not retry at the same moment.
        """
        self._retries = retries
        self._meter = meter
        self._cancelled = cancelled
        self._jitter = jitter
        self._lock = threading.Lock()
        self._failures = 0
        self._attempt = 0
        self._resume_at = 0.0
        """End of the latest backoff, as a `time.monotonic` value."""
        self._base = 0
        """`ProgressMeter.fetched` when the content was started or restarted."""
        self._furthest = 0
        """Bytes that the furthest earlier attempt at the content had fetched."""
        self._reached = 0
        """Bytes beyond which this attempt makes progress."""

    def check(self) -> None:
        """Raise `Interrupted` if the transfer was cancelled."""
        if self._cancelled.is_set():
            raise Interrupted("the transfer was stopped")

    def attempt(self) -> int:
        """Return the number of the attempt that begins now, for `backoff`."""
        with self._lock:
            return self._attempt

    def backoff(self, error: CdiError, attempt: int | None = None) -> None:
        """Wait before the retry after `error`, at least for the server's Retry-After.

        Connections of one transfer usually fail together: of all that began in the same `attempt`, one failure counts
        and the others share its pause.

        Raises:
            CdiError: `error`, if it is not retryable or the budget is spent.
            Interrupted: The transfer was cancelled.
        """
        self.check()
        # A peer source has waited for its other end as long as its job allows.
        if error.retry is not Retry.BACKOFF or isinstance(error, Interrupted | SourceChanged | PeerUnreachable):
            raise error
        with self._lock:
            if attempt is not None and attempt != self._attempt:
                seconds = max(self._resume_at - time.monotonic(), _retry_after(error))
            else:
                fetched = self._meter.fetched - self._base
                if fetched > self._reached:
                    self._failures, self._reached = 0, fetched
                seconds = self._count(error)
        self._wait(error, seconds)

    def begin_content(self) -> None:
        """Refill the budget for another content, such as the next layer of a container image."""
        with self._lock:
            self._failures, self._base = 0, self._meter.fetched
            self._furthest = self._reached = 0

    def restart(self, error: CdiError) -> None:
        """Wait before the content is read again from its first byte because of `error`.

        Raises:
            CdiError: `error`, if the budget is spent.
            Interrupted: The transfer was cancelled.
        """
        self.check()
        with self._lock:
            fetched = self._meter.fetched - self._base
            if fetched > self._furthest + _MIN_RESTART_PROGRESS:
                self._failures = 0
            self._furthest = max(self._furthest, fetched)
            self._base = self._meter.fetched
            self._reached = self._furthest + _MIN_RESTART_PROGRESS
            seconds = self._count(error)
        self._wait(error, seconds, from_start=True)

    def limited(self, retries: int) -> RetryBudget:
        """Return a separate budget of at most `retries`, for optional files."""
        return RetryBudget(
            min(retries, self._retries), meter=self._meter, cancelled=self._cancelled, jitter=self._jitter
        )

    def call(self, act: Callable[[], _T]) -> _T:
        """Call `act` and return its result; retry it after retryable errors until the budget is spent."""
        failed = False
        while True:
            attempt = self.attempt()
            self.check()
            try:
                found = act()
            except CdiError as error:
                failed = True
                self.backoff(error, attempt)
            else:
                if failed:
                    self._meter.clear_failure()
                return found

    def _count(self, error: CdiError) -> float:
        """Count a failure and return the seconds to wait; raise `error` if the budget is spent.  Needs the lock."""
        self._failures += 1
        if self._failures > self._retries:
            raise error
        self._attempt += 1
        seconds = _BACKOFF[min(self._failures, len(_BACKOFF)) - 1] * (0.5 + self._jitter())
        seconds = max(seconds, _retry_after(error))
        self._resume_at = time.monotonic() + seconds
        return seconds

    def _wait(self, error: CdiError, seconds: float, *, from_start: bool = False) -> None:
        if seconds <= 0:
            return
        LOG.debug("retrying in %.1f s because of %s: %s", seconds, error.code, error.message)
        self._meter.record_failure(error, f"waiting {seconds:.0f} s: {error.code}: {error.what}", from_start=from_start)
        if self._cancelled.wait(seconds):
            raise Interrupted("the transfer was stopped")


def _retry_after(error: CdiError) -> float:
    """Return the server's Retry-After in seconds; 0 if there is none."""
    return (error.retry_after or 0.0) if isinstance(error, SourceUnavailable) else 0.0
