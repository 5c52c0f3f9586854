"""Beginning again, where a source can neither be mended in place nor be given up yet."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from cdi.api.errors import CdiError, InternalError, Interrupted, SourceChanged, SourceUnavailable
from cdi.api.job import Job
from cdi.source.base import Source
from cdi.transfer.control import Control
from cdi.transfer.fetch import StreamBroken
from cdi.transfer.journal import forget
from cdi.transfer.patience import Patience
from cdi.transfer.result import Result

_PROGRESS = 16 << 20
"""An attempt that came this many bytes further than all before it gives the budget back; one that only came as far
again does not, or a server that always hangs up at the same byte would be asked for ever."""

_REMOTE = ("http", "s3", "gcs", "registry")
"""Sources that may be waiting for an answer, and whose closing interrupts that."""


def _closed(opened: AbstractContextManager[Source]) -> None:
    with opened:
        pass


def persist(
    job: Job,
    control: Control,
    result: Result,
    reopen: Callable[[], AbstractContextManager[Source]],
    attempt: Callable[[Source], None],
) -> None:
    """Call `attempt` until it ends, from the beginning each time.

    A one-way stream that broke and a content that changed under way are begun again, as often as the policy's retries
    allow; every other failure is raised at once, having used up a budget of its own where trying again made sense.
    """
    patience = Patience(policy=job.policy, meter=control.meter, cancelled=control.cancelled)
    failures = furthest = 0
    while True:
        cause: CdiError
        try:
            # Opening asks too, for credentials and the like.
            with patience.insist(reopen, _closed) as source:
                if job.source.kind in _REMOTE:
                    control.on_cancel(source.close)
                attempt(source)
            return
        except InternalError as error:
            if control.cancelled.is_set():
                # The source was closed under the attempt.
                raise Interrupted("the transfer was stopped") from error
            raise
        except SourceChanged as changed:
            forget(job.journal)
            cause = changed
        except StreamBroken as broken:
            if job.source.kind == "stream":
                raise broken.cause from broken
            cause = broken.cause
        failures += 1
        if control.meter.done - furthest > _PROGRESS:
            failures = 1
        furthest = max(furthest, control.meter.done)
        if failures > job.policy.retries:
            raise cause
        note = f"{cause.what}; started over"
        result.warn(note)
        control.meter.restart(note, failure=cause)
        pause = min(0.1 * 2**failures, 30.0)
        if isinstance(cause, SourceUnavailable) and cause.retry_after is not None:
            pause = max(pause, cause.retry_after)
        if control.cancelled.wait(pause):
            raise Interrupted("the transfer was stopped") from cause
