"""Tests of the order, the backoffs and the timers of a supervisor, with scripted reconcilers and a clock of their own."""

from __future__ import annotations

import logging

import pytest

from cdi.api.errors import Conflict, InvalidManifest, TargetError
from cdi.local.reconcilers.reconciler import Result, Task
from cdi.local.supervisor import MAX_BACKOFF, MIN_BACKOFF, Supervisor
from cdi.store.base import Key


class Script:
    """Reconciler that answers from a list, and then with an empty result; it records its keys."""

    def __init__(self, seen):
        self.seen, self.answers = seen, []

    def requests_for(self, changes):
        return ()

    def reconcile(self, key):
        self.seen.append(key)
        answer = self.answers.pop(0) if self.answers else Result()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bench:
    def __init__(self, home):
        self.now = 100.0
        self.supervisor = Supervisor(home, clock=lambda: self.now)
        self.seen = []
        self.supervisor._reconcilers = {plural: Script(self.seen) for plural in self.supervisor._reconcilers}
        self.queue = self.supervisor._queue
        self.step()  # the garbage collection that every supervisor begins with

    def answer(self, plural, *answers):
        self.supervisor._reconcilers[plural].answers += answers

    def step(self, seconds=0.0):
        """Advance the clock, and return what one round reconciles and whether there is work left."""
        self.now += seconds
        self.seen.clear()
        busy = self.supervisor.step(0)
        return list(self.seen), busy


@pytest.fixture
def bench(home):
    bench = Bench(home)
    yield bench
    bench.supervisor.close()


PVC, DV, SOURCE, CRON = (
    Key(plural, "default", "a")
    for plural in ("persistentvolumeclaims", "datavolumes", "datasources", "dataimportcrons")
)


def test_volumes_are_reconciled_before_what_refers_to_them(bench):
    for key in (CRON, SOURCE, DV, PVC):
        bench.queue.add(key)
    assert bench.step() == ([PVC, DV, CRON, SOURCE], False)


def test_objects_of_a_kind_are_reconciled_by_age(bench):
    old, new = Key("datavolumes", "default", "z"), Key("datavolumes", "default", "b")
    bodies = {old: "2026-01-01T00:00:00Z", new: "2026-01-02T00:00:00Z"}
    bench.supervisor._observed._bodies.update(
        {key: {"metadata": {"name": key.name, "creationTimestamp": born}} for key, born in bodies.items()}
    )
    for key in (new, old):
        bench.queue.add(key)
    assert bench.step()[0] == [old, new]


def test_a_failure_is_retried_with_growing_delays_and_logged_once(bench, caplog):
    error = TargetError("the disk is on fire")
    bench.answer("datasources", *[error] * 8)
    bench.queue.add(SOURCE)
    assert bench.step() == ([SOURCE], True)
    delay = MIN_BACKOFF
    for _ in range(7):
        assert bench.step(delay - 0.01) == ([], True)
        assert bench.step(0.01)[0] == [SOURCE]
        delay = min(delay * 2, MAX_BACKOFF)
    assert bench.step(MAX_BACKOFF) == ([SOURCE], True)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [f"datasource default/a: {error}"]


def test_a_success_resets_the_delay_and_another_error_is_logged(bench, caplog):
    bench.answer("datasources", TargetError("one"), TargetError("two"), Result(), TargetError("three"))
    bench.queue.add(SOURCE)
    bench.step()
    bench.step(1)
    bench.step(2)
    bench.queue.add(SOURCE)
    bench.step()
    assert bench.step(0.99) == ([], True)
    assert bench.step(0.01)[0] == [SOURCE]
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.split("]: ")[-1] for line in said] == ["one.", "two.", "three."]


def test_an_unexpected_exception_is_retried_and_does_not_stop_other_objects(bench):
    bench.answer("persistentvolumeclaims", RuntimeError("bug"))
    for key in (PVC, SOURCE):
        bench.queue.add(key)
    assert bench.step() == ([PVC, SOURCE], True)
    # Its DataVolume shows the error, and is reconciled once it is gone.
    assert bench.step(1) == ([PVC], True)
    assert bench.step() == ([DV], False)


def test_a_conflict_is_retried_at_once(bench):
    bench.answer("datavolumes", Conflict("changed"))
    bench.queue.add(DV)
    assert bench.step() == ([DV], True)
    assert bench.step() == ([DV], False)


def test_an_invalid_object_is_not_retried(bench):
    bench.answer("datavolumes", InvalidManifest("no"))
    bench.queue.add(DV)
    assert bench.step() == ([DV], False)
    assert bench.step(MAX_BACKOFF) == ([], False)


def test_a_requeue_is_work_unless_the_supervisor_may_exit_before_it(bench):
    bench.answer("datavolumes", Result(requeue_after=3600))
    bench.answer("dataimportcrons", Result(requeue_after=3600, keeps_running=False))
    bench.queue.add(CRON)
    assert bench.step() == ([CRON], False)
    bench.queue.add(DV)
    assert bench.step() == ([DV], True)
    assert bench.step(3600) == ([DV, CRON], False)


def test_a_failed_garbage_collection_is_retried(bench, caplog):
    collect = bench.supervisor._garbage.collect
    bench.supervisor._garbage.collect = lambda: (_ for _ in ()).throw(TargetError("busy"))
    bench.queue.add(Task.GARBAGE_COLLECTION)
    assert bench.step() == ([], True)
    assert "garbage collection: error[TargetError]: busy" in caplog.text
    bench.supervisor._garbage.collect = collect
    assert bench.step(1) == ([], False)
