"""Tests of the handle of a running transfer: calls that are abandoned, and what a cancellation calls."""

import threading

import pytest

from cdi.api.errors import Interrupted
from tests.memory import control_of


def test_an_abandonable_call_returns_or_raises():
    control = control_of()
    assert control.run_abandonable(lambda: threading.current_thread().name) == "setup"
    with pytest.raises(ZeroDivisionError):
        control.run_abandonable(lambda: 1 // 0)


def test_a_call_is_abandoned_when_the_transfer_is_cancelled():
    """The abandoned call's result is closed later."""
    control = control_of()
    cancelled = control.cancelled
    go, closed, seen = threading.Event(), threading.Event(), []

    def act():
        cancelled.set()
        assert go.wait(20)
        return "found"

    def late(found):
        seen.append(found)
        closed.set()

    with pytest.raises(Interrupted):
        control.run_abandonable(act, late)
    assert not seen
    go.set()
    assert closed.wait(20)
    assert seen == ["found"]


def test_no_call_is_begun_once_it_is_cancelled():
    control = control_of()
    cancelled = control.cancelled
    begun = []
    cancelled.set()
    with pytest.raises(Interrupted):
        control.run_abandonable(lambda: begun.append(1))
    assert begun == []


def test_a_cancellation_calls_what_is_still_open_and_nothing_else():
    control, called = control_of(), []
    with control.cancelling(lambda: called.append("first")):
        pass
    with control.cancelling(lambda: called.append("second")):
        control.cancel()
    assert called == ["second"]
    with control.cancelling(lambda: called.append("third")):
        assert called == ["second", "third"]
    control.cancel()
    assert called == ["second", "third"]
