"""Log lines about a worker's job: its start, changes of phase, progress and outcome.

No line has a secret: sources are written without user, password and query.
"""

from __future__ import annotations

import logging
import time
from typing import assert_never

from cdi.api.job import (
    BlankSourceSpec,
    Failure,
    FileSourceSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Job,
    Limits,
    Outcome,
    Progress,
    RegistrySourceSpec,
    S3SourceSpec,
    SourceSpec,
    StreamSourceSpec,
)
from cdi.api.peer import PeerSourceSpec
from cdi.image.sizes import format_size
from cdi.logs import fields, verbosity

LOG = logging.getLogger(__name__)
LOG_INTERVAL = 10.0
"""Interval in seconds between progress lines without another change."""
MIN_LOG_INTERVAL = 1.0
"""The same interval at a higher verbosity."""


class ProgressLogger:
    """Logger of a transfer's progress."""

    def __init__(self) -> None:
        self._silent = verbosity() == 0
        self._every = MIN_LOG_INTERVAL if verbosity() > 1 else LOG_INTERVAL
        self._state: tuple[str, str] | None = None
        self._done = 0
        self._when = 0.0

    def tell(self, progress: Progress) -> None:
        """Log a change of the phase or the note, or after an interval the number of bytes if it has changed."""
        if self._silent or progress.phase == "done" or (progress.phase == "preparing" and not progress.note):
            return  # the first line and the last have more information
        now = time.monotonic()
        state = (progress.phase, _without_numbers(progress.note))
        if state == self._state and (now - self._when < self._every or progress.done == self._done):
            return
        self._state, self._when, self._done = state, now, progress.done
        LOG.info(_words(progress))


def log_started(job: Job) -> None:
    size = f" of {format_size(job.size)}" if job.size is not None else ""
    LOG.info(f"import of {place(job.source)} onto {job.target.kind} {job.target.path}{size}")


def limited(limits: Limits) -> None:
    bandwidth = f"{format_size(limits.bandwidth)}/s" if limits.bandwidth else "not limited"
    LOG.info(f"limits: bandwidth {bandwidth}, connections {limits.connections or 'as before'}")


def log_finished(outcome: Outcome) -> None:
    """Log the outcome."""
    for warning in outcome.warnings:
        LOG.warning(warning)
    if outcome.failure is not None:
        log_failure(outcome.failure)
        return
    words = [f"done in {outcome.seconds:.1f} s: {' in '.join((outcome.format or '', *reversed(outcome.wrappers)))}"]
    words.append(f"by {outcome.path}")
    words.append(f"{format_size(outcome.fetched)} fetched, {format_size(outcome.written)} written")
    if outcome.resumed_at:
        words.append(f"resumed at {format_size(outcome.resumed_at)}")
    if outcome.verified_by:
        words.append(f"verified by {', '.join(outcome.verified_by)}")
    if outcome.digest:
        words.append(outcome.digest)
    LOG.info(", ".join(words))


def log_failure(failure: Failure) -> None:
    LOG.error(failure.message, extra=fields(code=failure.code))


def place(source: SourceSpec) -> str:
    """Return the location of a source without secrets."""
    match source:
        case FileSourceSpec():
            return source.path
        case StreamSourceSpec():
            return "a stream"
        case PeerSourceSpec():
            return "another volume"
        case BlankSourceSpec():
            return "nothing"
        case HttpSourceSpec() | S3SourceSpec() | GcsSourceSpec() | RegistrySourceSpec():
            from cdi.api.rules.urls import redacted

            return redacted(source.url)
        case _:
            assert_never(source)


def _words(progress: Progress) -> str:
    text = f"{progress.phase}: {format_size(progress.done)}"
    if progress.total is not None:
        text += f" of {format_size(progress.total)}, {100 * (progress.fraction or 0):.0f} %"
    if progress.rate:
        text += f", {format_size(int(progress.rate))}/s"
    return f"{text}, {progress.note}" if progress.note else text


def _without_numbers(note: str) -> str:
    """Return a note without digits, so that a countdown in it does not count as a change."""
    return "".join(c for c in note if not c.isdigit())
