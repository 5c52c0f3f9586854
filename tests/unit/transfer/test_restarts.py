"""Tests of restarts within the retry budget."""

import os
import threading
from contextlib import contextmanager

import pytest

from cdi.api.errors import (
    ChecksumMismatch,
    InternalError,
    Interrupted,
    SourceChanged,
    SourceStalled,
    SourceUnavailable,
    SourceUnreachable,
)
from cdi.api.job import BlankSourceSpec, FileTargetSpec, HttpSourceSpec, Job, Policy, StreamSourceSpec
from cdi.transfer.control import TransferControl
from cdi.transfer.restarts import run_with_restarts
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.retry import RestartRequired, RetryBudget
from tests.memory import MemorySource

MIB = 1 << 20


class Pauses(threading.Event):
    def __init__(self):
        super().__init__()
        self.slept = []

    def wait(self, timeout=None):
        self.slept.append(timeout)
        return self.is_set()


class Run:
    """A transfer with scripted attempts.

    Attributes:
        script: for each attempt an error to raise, or None, and the bytes that it transfers before.
    """

    def __init__(self, script, *, source=None, retries=3, journal=None):
        job = Job(
            id="x",
            source=source or HttpSourceSpec(url="http://example.invalid/"),
            target=FileTargetSpec(path="/nowhere/disk.img"),
            policy=Policy(retries=retries),
            journal=journal,
        )
        self.control = TransferControl(job)
        self.control.cancelled = self.pauses = Pauses()
        self.control.retries = RetryBudget(retries, meter=self.control.meter, cancelled=self.pauses, jitter=lambda: 0.5)
        self.result = OutcomeBuilder("x")
        self.script = list(script)
        self.attempts, self.open, self.opened, self.starts = 0, 0, 0, []
        run_with_restarts(job, self.control, self.result, self.reopen, self.attempt)

    @contextmanager
    def reopen(self):
        self.open += 1
        self.opened += 1
        try:
            yield MemorySource(b"")
        finally:
            self.open -= 1

    def attempt(self, probed):
        assert self.open == 1
        self.starts.append(self.control.meter.done)
        self.attempts += 1
        entry = self.script.pop(0) if self.script else None
        if entry is None:
            return
        error, far = entry if isinstance(entry, tuple) else (entry, 0)
        self.control.meter.add_fetched(far)
        self.control.meter.advance(far)
        raise error


def broken():
    return RestartRequired(SourceStalled("stalled"))


def test_a_broken_stream_and_a_changed_content_are_begun_again():
    run = Run([broken(), SourceChanged("another now"), broken()])
    assert run.attempts == run.opened == 4
    assert run.starts == [0, 0, 0, 0]
    assert run.pauses.slept == sorted(run.pauses.slept)
    assert any("stalled" in warning for warning in run.result.warnings)


def test_the_budget_ends_with_the_cause():
    with pytest.raises(SourceStalled):
        Run([broken()] * 9, retries=2)
    with pytest.raises(SourceChanged):
        Run([SourceChanged("again")] * 9, retries=2)
    run = Run([broken()] * 2, retries=2)
    assert run.attempts == 3


def test_no_retries_means_one_attempt():
    with pytest.raises(SourceStalled):
        Run([broken()], retries=0)


def test_coming_further_gives_the_budget_back():
    run = Run([(broken(), far * 20 * MIB) for far in range(1, 20)], retries=2)
    assert run.attempts == 20


def test_coming_only_as_far_again_does_not():
    """Otherwise a server that always closes the connection at the same byte would be asked without end."""
    with pytest.raises(SourceStalled):
        Run([(broken(), 100 * MIB)] * 50, retries=3)


def test_progress_begins_again_with_the_work():
    run = Run([(broken(), 5 * MIB)])
    assert run.starts == [0, 0]
    assert "starting over" in run.control.meter.message


def test_other_failures_are_raised_at_once():
    for error in (ChecksumMismatch("other"), Interrupted("stop"), SourceStalled("x"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            Run([error])


def test_a_stream_that_was_handed_over_cannot_be_begun_again():
    with pytest.raises(SourceStalled):
        Run([broken()], source=StreamSourceSpec())


def test_the_server_is_given_the_time_that_it_asks_for():
    run = Run([RestartRequired(SourceUnavailable("busy", retry_after=55.0))])
    assert max(run.pauses.slept) >= 55


def test_a_journal_of_the_former_content_is_forgotten(tmp_path):
    journal = tmp_path / "journal"
    journal.write_text("{}")
    Run([SourceChanged("another")], journal=str(journal))
    assert not os.path.exists(journal)
    journal.write_text("{}")
    Run([broken()], journal=str(journal))
    assert os.path.exists(journal)


def test_cancelled_while_it_waits():
    control = []

    class Cancelled(Run):
        def attempt(self, probed):
            self.control.cancelled.set()
            control.append(1)
            raise broken()

    with pytest.raises(Interrupted):
        Cancelled([])
    assert control == [1]


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_source_that_was_closed_by_cancelling_is_no_defect(cancelled):
    class Closing(Run):
        def attempt(self, probed):
            if cancelled:
                self.control.cancel()
            raise InternalError("the source is closed")

    with pytest.raises(Interrupted if cancelled else InternalError):
        Closing([])


def test_cancelling_closes_a_source_that_may_be_waiting_for_an_answer():
    closed = []

    class Waiting(Run):
        @contextmanager
        def reopen(self):
            source = MemorySource(b"")
            source.close = lambda: closed.append(self.control.cancelled.is_set())
            self.open = 1
            yield source

        def attempt(self, probed):
            self.control.cancel()
            assert closed == [True]
            raise Interrupted("aborted")

    with pytest.raises(Interrupted):
        Waiting([])


def test_a_source_that_cannot_be_opened_for_a_moment_is_opened_later():
    """The credential chains of S3 query services of their own when a source is opened."""
    job = Job(id="x", source=BlankSourceSpec(), target=FileTargetSpec(path="x"), policy=Policy(retries=2))
    script, attempts = [SourceUnreachable("the metadata service"), None], []

    def reopen():
        if (error := script.pop(0)) is not None:
            raise error
        return MemorySource(b"")

    run_with_restarts(job, TransferControl(job), OutcomeBuilder("x"), reopen, attempts.append)
    assert len(attempts) == 1
    assert script == []
