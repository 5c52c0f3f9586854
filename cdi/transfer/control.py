"""State shared by all parts of a running transfer: cancellation, limits, counters, retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cdi.api.job import Limits, Progress
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.rate_limit import RateLimiter
from cdi.transfer.retry import RetryBudget

if TYPE_CHECKING:
    from cdi.api.copy import AnyJob
    from cdi.api.poll import PollJob


class TransferControl:
    """Handle to observe, limit and cancel a transfer.  Thread-safe."""

    def __init__(self, job: AnyJob | PollJob) -> None:
        self.cancelled = threading.Event()
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

    def cancel(self) -> None:
        """Request the transfer to stop; it leaves a journal from which a later run can resume."""
        self.cancelled.set()
        with self._lock:
            acts = list(self._on_cancel)
        for act in acts:
            act()

    def limit(self, limits: Limits) -> None:
        self.throttle.change(limits)

    def progress(self) -> Progress:
        return self.meter.snapshot(self.written())
