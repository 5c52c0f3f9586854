"""Passing faults are waited out within the budget, others are not."""

import threading
from contextlib import nullcontext

import pytest

from cdi.api.errors import CdiError, Interrupted, SourceChanged, SourceNotFound, SourceUnavailable, SourceUnreachable
from cdi.api.job import BlankSourceSpec, Failure, FileTargetSpec, Job, Policy
from cdi.transfer.control import Control
from cdi.transfer.meter import Meter
from cdi.transfer.patience import Patience
from cdi.transfer.persist import persist
from cdi.transfer.result import Result


class Event(threading.Event):
    """Time passes at once, and is told."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        return self.is_set()


def patience(retries: int = 3) -> tuple[Patience, Event, Meter]:
    event, meter = Event(), Meter()
    return Patience(policy=Policy(retries=retries), meter=meter, cancelled=event, jitter=lambda: 0.5), event, meter


class Flaky:
    def __init__(self, *failures: CdiError) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def test_passing_faults_are_tried_again_after_ever_longer_pauses() -> None:
    one, event, meter = patience()
    act = Flaky(SourceUnreachable("a"), SourceUnavailable("b"), SourceUnreachable("c"))
    assert one.insist(act) == "done"
    assert event.waited == sorted(event.waited)
    assert len(event.waited) == 3
    assert meter.note == ""


def test_the_budget_ends_with_the_last_failure() -> None:
    one, event, _ = patience(retries=2)
    act = Flaky(*(SourceUnreachable(str(number)) for number in range(9)))
    with pytest.raises(SourceUnreachable, match="2"):
        one.insist(act)
    assert act.calls == 3
    assert len(event.waited) == 2


def test_a_server_is_not_asked_before_it_said() -> None:
    one, event, meter = patience()
    one.pause(SourceUnavailable("busy", retry_after=77.0), 1)
    assert event.waited == [77.0]
    assert meter.note.startswith("waiting 77 s: SourceUnavailable")
    one.pause(SourceUnavailable("busy", retry_after=0.0), 1)
    assert 0 < event.waited[-1] < 1


@pytest.mark.parametrize("failure", [SourceNotFound("x"), SourceChanged("x"), Interrupted("x")])
def test_what_waiting_does_not_mend_is_raised_at_once(failure: CdiError) -> None:
    one, event, _ = patience()
    with pytest.raises(type(failure)):
        one.insist(Flaky(failure))
    assert event.waited == []


def test_a_failed_try_is_reported_until_bytes_flow() -> None:
    one, _, meter = patience()
    assert meter.snapshot(0).failure is None
    failure = SourceUnreachable("no connection", where="http://s/i")
    one.pause(failure, 1)
    assert meter.snapshot(0).failure == Failure.of(failure)
    meter.add_fetched(0)
    assert meter.snapshot(0).failure is not None
    meter.add_fetched(1)
    assert meter.snapshot(0).failure is None


def test_a_source_that_answers_again_is_no_failure() -> None:
    one, _, meter = patience()
    assert one.insist(Flaky(SourceUnreachable("a"))) == "done"
    assert meter.snapshot(0).failure is None


def test_a_connection_that_breaks_while_bytes_flow_is_a_failure_once_the_next_try_gives_none() -> None:
    one, _, meter = patience()
    for _ in range(3):
        meter.add_fetched(1000)
        one.pause(SourceUnreachable("reset"), 1)
        assert meter.snapshot(0).failure is None
    one.pause(SourceUnreachable("refused"), 2)
    told = meter.snapshot(0).failure
    assert told is not None and told.message.startswith("refused.")


def test_a_stream_that_begins_again_reports_why_until_bytes_flow() -> None:
    meter = Meter()
    meter.add_fetched(1000)
    meter.restart("started over", failure=SourceUnreachable("reset"))
    assert meter.snapshot(0).failure is not None
    meter.add_fetched(1)
    assert meter.snapshot(0).failure is None


def test_cancelling_ends_the_waiting() -> None:
    one, event, _ = patience()
    event.set()
    with pytest.raises(Interrupted):
        one.insist(Flaky(SourceUnreachable("x")))


def test_a_source_that_cannot_be_opened_for_a_moment_is_opened_later() -> None:
    """The credential chains of S3 ask services of their own when a source is opened."""
    job = Job(id="x", source=BlankSourceSpec(), target=FileTargetSpec(path="x"), policy=Policy(retries=2))
    attempts = []
    act = Flaky(SourceUnreachable("the metadata service"))
    persist(job, Control(job), Result("x"), lambda: nullcontext(act()), attempts.append)  # type: ignore[arg-type]
    assert attempts == ["done"]
    assert act.calls == 2


def test_what_is_done_aside_is_given_or_raised():
    waiting, _, _ = patience()
    assert waiting.aside(lambda: threading.current_thread().name) == "aside"
    with pytest.raises(ZeroDivisionError):
        waiting.aside(lambda: 1 // 0)


def test_what_is_done_aside_is_left_when_the_transfer_is_cancelled():
    """And what comes of it later is closed."""
    waiting, cancelled, _ = patience()
    go, closed, seen = threading.Event(), threading.Event(), []

    def act():
        cancelled.set()
        assert go.wait(20)
        return "found"

    def late(found):
        seen.append(found)
        closed.set()

    with pytest.raises(Interrupted):
        waiting.aside(act, late)
    assert not seen
    go.set()
    assert closed.wait(20)
    assert seen == ["found"]


def test_nothing_is_begun_aside_once_it_is_cancelled():
    waiting, cancelled, _ = patience()
    begun = []
    cancelled.set()
    with pytest.raises(Interrupted):
        waiting.aside(lambda: begun.append(1))
    assert begun == []
