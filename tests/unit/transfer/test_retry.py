"""Tests that transient errors are retried within the budget, and others are not."""

import threading

import pytest

from cdi.api.errors import CdiError, Interrupted, SourceChanged, SourceNotFound, SourceUnavailable, SourceUnreachable
from cdi.api.job import Failure
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.retry import RetryBudget

MIB = 1 << 20


class Event(threading.Event):
    """An event whose waits return at once and are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        return self.is_set()


def budget_of(retries: int = 3) -> tuple[RetryBudget, Event, ProgressMeter]:
    event, meter = Event(), ProgressMeter()
    return RetryBudget(retries, meter=meter, cancelled=event, jitter=lambda: 0.5), event, meter


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
    budget, event, meter = budget_of()
    act = Flaky(SourceUnreachable("a"), SourceUnavailable("b"), SourceUnreachable("c"))
    assert budget.call(act) == "done"
    assert event.waited == sorted(event.waited)
    assert len(event.waited) == 3
    assert meter.message == ""


def test_the_budget_ends_with_the_last_failure() -> None:
    budget, event, _ = budget_of(retries=2)
    act = Flaky(*(SourceUnreachable(str(number)) for number in range(9)))
    with pytest.raises(SourceUnreachable, match="2"):
        budget.call(act)
    assert act.calls == 3
    assert len(event.waited) == 2


def test_a_server_is_not_asked_before_it_said() -> None:
    budget, event, meter = budget_of()
    budget.backoff(SourceUnavailable("busy", retry_after=77.0))
    assert event.waited == [77.0]
    assert meter.message.startswith("waiting 77 s: SourceUnavailable")
    budget.backoff(SourceUnavailable("busy", retry_after=0.0))
    assert 0 < event.waited[-1] < 1


@pytest.mark.parametrize("failure", [SourceNotFound("x"), SourceChanged("x"), Interrupted("x")])
def test_what_waiting_does_not_mend_is_raised_at_once(failure: CdiError) -> None:
    budget, event, _ = budget_of()
    with pytest.raises(type(failure)):
        budget.call(Flaky(failure))
    assert event.waited == []


def test_a_failure_of_every_kind_of_request_spends_the_same_budget() -> None:
    budget, event, _ = budget_of(retries=3)
    budget.backoff(SourceUnreachable("opening"))
    budget.restart(SourceUnreachable("reading"))
    with pytest.raises(SourceUnreachable, match="probing"):
        budget.call(Flaky(*[SourceUnreachable("probing")] * 9))
    assert event.waited == sorted(event.waited)
    assert len(event.waited) == 3


def test_a_success_without_content_refills_nothing() -> None:
    budget, _, _ = budget_of(retries=2)
    budget.backoff(SourceUnreachable("a"))
    assert budget.call(Flaky()) == "done"
    budget.backoff(SourceUnreachable("b"))
    with pytest.raises(SourceUnreachable, match="c"):
        budget.backoff(SourceUnreachable("c"))


def test_every_byte_of_progress_refills_the_budget_in_place() -> None:
    budget, _, meter = budget_of(retries=1)
    for _ in range(20):
        meter.add_fetched(1)
        budget.backoff(SourceUnreachable("again"))
    with pytest.raises(SourceUnreachable):
        budget.backoff(SourceUnreachable("no byte came"))


def test_after_a_restart_only_content_well_beyond_the_furthest_refills_the_budget() -> None:
    budget, _, meter = budget_of(retries=1)
    meter.add_fetched(100 * MIB)
    budget.restart(SourceChanged("another"))
    meter.add_fetched(116 * MIB)
    with pytest.raises(SourceUnreachable):
        budget.backoff(SourceUnreachable("hardly further than before"))

    budget, _, meter = budget_of(retries=1)
    meter.add_fetched(100 * MIB)
    budget.restart(SourceChanged("another"))
    meter.add_fetched(116 * MIB + 1)
    budget.backoff(SourceUnreachable("further"))
    meter.add_fetched(1)
    budget.backoff(SourceUnreachable("and a byte further"))
    budget.restart(SourceChanged("another once more, after all that"))
    with pytest.raises(SourceChanged):
        budget.restart(SourceChanged("and at once again"))


def test_connections_that_fail_together_spend_one_retry() -> None:
    budget, event, _ = budget_of(retries=2)
    for turn in range(2):
        attempt = budget.attempt()
        for connection in range(8):
            budget.backoff(SourceUnreachable(f"{turn} {connection}"), attempt)
    attempt = budget.attempt()
    for connection in range(8):
        with pytest.raises(SourceUnreachable):
            budget.backoff(SourceUnreachable(f"2 {connection}"), attempt)
    # Later ones also retry together: each waits for the rest of the first one's pause.
    assert len(event.waited) == 16
    assert max(event.waited[1:8]) <= event.waited[0]


def test_a_connection_that_joins_a_pause_still_respects_its_own_retry_after() -> None:
    budget, event, _ = budget_of()
    attempt = budget.attempt()
    budget.backoff(SourceUnreachable("a"), attempt)
    budget.backoff(SourceUnavailable("busy", retry_after=44.0), attempt)
    assert event.waited[1] == 44.0


def test_another_content_has_a_full_budget() -> None:
    budget, _, meter = budget_of(retries=1)
    meter.add_fetched(100 * MIB)
    budget.restart(SourceUnreachable("a"))
    budget.begin_content()
    budget.backoff(SourceUnreachable("b"))
    meter.add_fetched(1)
    budget.backoff(SourceUnreachable("c"))


def test_a_limited_budget_is_apart_and_no_larger() -> None:
    budget, _, _ = budget_of(retries=1)
    with pytest.raises(SourceUnreachable):
        budget.limited(5).call(act := Flaky(*[SourceUnreachable("x")] * 9))
    assert act.calls == 2
    budget.backoff(SourceUnreachable("the transfer's own"))


def test_a_failed_try_is_reported_until_bytes_flow() -> None:
    budget, _, meter = budget_of()
    assert meter.snapshot(0).failure is None
    failure = SourceUnreachable("no connection", where="http://s/i")
    budget.backoff(failure)
    assert meter.snapshot(0).failure == Failure.from_error(failure)
    meter.add_fetched(0)
    assert meter.snapshot(0).failure is not None
    meter.add_fetched(1)
    assert meter.snapshot(0).failure is None


def test_a_source_that_responds_again_is_no_failure() -> None:
    budget, _, meter = budget_of()
    assert budget.call(Flaky(SourceUnreachable("a"))) == "done"
    assert meter.snapshot(0).failure is None


def test_a_connection_that_breaks_while_bytes_flow_is_a_failure_once_the_next_try_gives_none() -> None:
    budget, _, meter = budget_of()
    for _ in range(3):
        meter.add_fetched(1000)
        budget.backoff(SourceUnreachable("reset"))
        assert meter.snapshot(0).failure is None
    budget.backoff(SourceUnreachable("refused"))
    failure = meter.snapshot(0).failure
    assert failure is not None and failure.message.startswith("refused.")


def test_a_stream_that_starts_over_reports_why_until_bytes_flow() -> None:
    budget, _, meter = budget_of()
    meter.add_fetched(1000)
    budget.restart(SourceUnreachable("reset"))
    assert meter.snapshot(0).failure is not None
    meter.restart("started over", failure=SourceUnreachable("reset"))
    assert meter.snapshot(0).failure is not None
    meter.add_fetched(1)
    assert meter.snapshot(0).failure is None


def test_cancelling_ends_the_waiting() -> None:
    budget, event, _ = budget_of()
    event.set()
    with pytest.raises(Interrupted):
        budget.call(Flaky(SourceUnreachable("x")))
