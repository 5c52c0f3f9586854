"""Tests of the bounded number of workers, and of noticing the end of processes."""

from __future__ import annotations

import pytest

from cdi.local.lister import Observed
from cdi.local.worker_slots import DEFAULT_WORKERS, MAX_WORKERS, ProcessMonitor, WorkerSlots
from cdi.store.base import Change, Key

A, B, C = (Key("datavolumes", "default", name) for name in "abc")


class Running(set):
    """Stand-in for launcher and tasks: what is in it is running."""

    def alive(self, uid):
        return ("worker", uid) in self

    def running(self, task, uid):
        return (task, uid) in self


@pytest.fixture
def running():
    return Running()


@pytest.fixture
def processes(running):
    return ProcessMonitor(running, running)


@pytest.fixture
def observed(home):
    return Observed(home)


@pytest.fixture
def slots(observed, processes):
    return WorkerSlots(observed, processes)


def set_limit(observed, text):
    body = {"metadata": {"name": "config", "resourceVersion": "1", "uid": "u", "annotations": {MAX_WORKERS: text}}}
    observed.take([Change(type="MODIFIED", key=Key("cdiconfigs", "", "config"), body=body)])


def start(processes, running, key):
    running.add(("worker", key.name))
    processes.add("worker", key.name, key)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("2", 2),
        ("0", 1),
        ("99999", 1000),
        ("9" * 5000, 1000),
        ("0007", 7),
        ("many", DEFAULT_WORKERS),
        ("-1", DEFAULT_WORKERS),
        ("٣", DEFAULT_WORKERS),
    ],
)
def test_the_limit_is_an_annotation_of_the_configuration(observed, slots, text, limit):
    assert slots.limit == DEFAULT_WORKERS
    set_limit(observed, text)
    assert slots.limit == limit


def test_slots_are_given_in_the_order_in_which_they_were_asked_for(observed, slots, processes, running):
    set_limit(observed, "1")
    assert slots.has_slot(A)
    start(processes, running, A)
    assert not slots.has_slot(B)
    for key in (B, C, B):
        slots.wait(key)
    assert slots.next() is None
    running.clear()
    assert processes.take_ended() == [A]
    assert not slots.has_slot(C)
    assert slots.has_slot(B)
    assert slots.next() == B
    slots.leave(B)
    assert slots.next() == C
    slots.leave(C)
    assert slots.next() is None


def test_polls_and_proofs_need_no_slot(observed, slots, processes, running):
    set_limit(observed, "1")
    cron = Key("dataimportcrons", "default", "c")
    running |= {("poll", "c"), ("proof", "v")}
    processes.add("poll", "c", cron)
    processes.add("proof", "v", cron)
    assert (len(processes), processes.workers) == (2, 0)
    assert slots.has_slot(A)


def test_the_end_of_a_process_is_reported_once(processes, running):
    for key in (A, B):
        start(processes, running, key)
    running.discard(("worker", "a"))
    assert processes.take_ended() == [A]
    assert processes.take_ended() == []
    assert processes.workers == 1
