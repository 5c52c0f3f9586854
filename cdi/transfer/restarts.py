"""Set-up of an attempt, and its repetition from the first byte."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdi.api.errors import CdiError, InternalError, Interrupted, SourceChanged
from cdi.transfer.expected_digest import ExpectedDigest, expectation
from cdi.transfer.journal import remove
from cdi.transfer.retry import RestartRequired

if TYPE_CHECKING:
    from cdi.api.job import Job
    from cdi.source.base import Source
    from cdi.transfer.control import TransferControl
    from cdi.transfer.result import OutcomeBuilder

LOG = logging.getLogger(__name__)
_REMOTE = ("http", "s3", "gcs", "registry", "peer")
"""Kinds of sources that may block on a server's response; closing the source interrupts that."""


@dataclass(frozen=True, slots=True)
class ProbedSource:
    """A source that has stated its facts, and the digest that its content is expected to have."""

    source: Source
    expected: ExpectedDigest
    scope: ExitStack
    """Closes the source."""


def run_with_restarts(
    job: Job,
    control: TransferControl,
    result: OutcomeBuilder,
    reopen: Callable[[], AbstractContextManager[Source]],
    attempt: Callable[[ProbedSource], None],
) -> None:
    """Call `attempt` with a probed source, and again from the first byte after `RestartRequired` and `SourceChanged`.

    The number of restarts is limited by ``control.retries``. Every other error is raised at once: if it was retryable,
    it has already spent the budget.
    """
    budget = control.retries
    budget.begin_content()
    while True:
        cause: CdiError
        try:
            probed = control.run_abandonable(lambda: _set_up(job, control, result, reopen), _close)
            LOG.debug("attempt with %r", probed.source)
            with probed.scope, _cancelling(probed.source, job, control):
                attempt(probed)
            return
        except InternalError as error:
            if control.cancelled.is_set():
                # The cancellation closed the source while the attempt was using it.
                raise Interrupted("the transfer was stopped") from error
            raise
        except SourceChanged as changed:
            remove(job.journal)
            cause = changed
        except RestartRequired as broken:
            if job.source.kind == "stream":
                raise broken.cause from broken
            cause = broken.cause
        budget.restart(cause)
        note = f"{cause.what}; starting over"
        result.warn(note)
        control.meter.restart(note, failure=cause)


def _set_up(
    job: Job,
    control: TransferControl,
    result: OutcomeBuilder,
    reopen: Callable[[], AbstractContextManager[Source]],
) -> ProbedSource:
    """Open and probe the source, and look for the digest that its content should have, in one thread."""
    # Opening a source may send requests too, for example for credentials.
    opened = control.retries.call(reopen)
    with ExitStack() as scope:
        source = scope.enter_context(opened)
        with _cancelling(source, job, control):
            facts = control.retries.call(source.probe)
            result.validator = facts.validator
            stated = (facts.length, facts.max_length, facts.estimate)
            control.meter.total = next((size for size in stated if size is not None), None)
            expected = expectation(job, source, facts, result, control)
        return ProbedSource(source, expected, scope.pop_all())


def _cancelling(source: Source, job: Job, control: TransferControl) -> AbstractContextManager[None]:
    """Close a source that may block if the transfer is cancelled."""
    return control.cancelling(source.close if job.source.kind in _REMOTE else lambda: None)


def _close(probed: ProbedSource) -> None:
    probed.scope.close()
