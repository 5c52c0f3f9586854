from __future__ import annotations

import threading

import pytest

from cdi.api.job import FileSourceSpec, FileTargetSpec, Job
from cdi.client.with_progress import run_with_progress
from cdi.transfer.control import TransferControl


@pytest.fixture
def control():
    return TransferControl(Job(id="a", source=FileSourceSpec(path="/a"), target=FileTargetSpec(path="/b")))


def test_gives_what_the_work_gives(control):
    assert run_with_progress(lambda: 7, control) == 7


def test_raises_what_the_work_raises(control):
    def work():
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_with_progress(work, control)


def test_shows_progress_meanwhile(control):
    seen = threading.Event()
    shown = []

    def look(progress):
        shown.append(progress)
        seen.set()

    assert run_with_progress(lambda: seen.wait(60), control, look)
    assert shown[0].phase == "preparing"


def test_an_interrupt_stops_the_work_before_it_is_passed_on(control):
    ended = []

    def work():
        assert control.cancelled.wait(60)
        ended.append(True)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with_progress(work, control, interrupt)
    assert ended == [True]
