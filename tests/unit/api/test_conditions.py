import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.conditions import find_condition, set_condition
from cdi.api.meta import Condition
from cdi.api.phases import ConditionStatus, Phase, progress
from cdi.api.timestamps import timestamp

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
LATER = NOON + dt.timedelta(minutes=5)


def ready(conditions, status, reason="R", message="m", now=NOON, **more):
    return set_condition(conditions, "Ready", status=status, reason=reason, message=message, now=now, **more)


def test_a_new_condition_is_appended():
    other = Condition(type="Bound", status="True")
    conditions = ready([other], True)
    assert conditions[0] is other
    assert conditions[1].to_dict() == {
        "type": "Ready",
        "status": "True",
        "reason": "R",
        "message": "m",
        "lastTransitionTime": "2026-01-01T12:00:00Z",
        "lastHeartbeatTime": "2026-01-01T12:00:00Z",
    }


def test_the_same_again_changes_nothing():
    before = ready(None, False)
    assert ready(before, False, now=LATER) == before


def test_a_transition_is_a_change_of_status():
    (condition,) = ready(ready(None, False), True, now=LATER)
    assert condition.last_transition_time == condition.last_heartbeat_time == timestamp(LATER)


def test_another_message_is_no_transition():
    (condition,) = ready(ready(None, False), False, message="other", now=LATER)
    assert condition.message == "other"
    assert condition.last_transition_time == timestamp(NOON)
    assert condition.last_heartbeat_time == timestamp(LATER)


@pytest.mark.parametrize(("interval", "moved"), [(1, True), (5, True), (6, False)])
def test_a_heartbeat_moves_when_it_is_due(interval, moved):
    (condition,) = ready(ready(None, True), True, now=LATER, heartbeat=dt.timedelta(minutes=interval))
    assert (condition.last_heartbeat_time == timestamp(LATER)) is moved
    assert condition.last_transition_time == timestamp(NOON)


@pytest.mark.parametrize("stored", [None, "", "yesterday", "2026-01-01T12:00:00"])
def test_a_heartbeat_that_cannot_be_read_is_due(stored):
    old = Condition(type="Ready", status="True", reason="R", message="m", last_heartbeat_time=stored)
    (condition,) = ready([old], True, now=LATER, heartbeat=dt.timedelta(minutes=5))
    assert condition.last_heartbeat_time == timestamp(LATER)


def test_fields_of_the_future_survive():
    old = Condition.model_validate({"type": "Ready", "status": "False", "observedGeneration": 3})
    assert ready([old], True)[0].to_dict()["observedGeneration"] == 3


def test_times_are_whole_seconds_in_utc():
    east = dt.timezone(dt.timedelta(hours=2))
    assert timestamp(dt.datetime(2026, 1, 1, 1, 2, 3, 999999, tzinfo=east)) == "2025-12-31T23:02:03Z"
    with pytest.raises(ValueError):
        timestamp(dt.datetime(2026, 1, 1))


def test_finding():
    conditions = ready(None, ConditionStatus.UNKNOWN)
    assert find_condition(conditions, "Ready").status == "Unknown"
    assert find_condition(None, "Ready") is None


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (None, "N/A"),
        (0, "0.00%"),
        (0.42171, "42.17%"),
        (0.99999, "99.99%"),
        (1, "100.0%"),
        (1.5, "100.0%"),
        (-1, "0.00%"),
    ],
)
def test_progress_has_two_decimals_and_ends_with_one(fraction, text):
    assert progress(fraction) == text


@given(st.floats(0, 1, exclude_max=True))
def test_progress_is_complete_only_at_the_end(fraction):
    assert progress(fraction) != "100.0%"


def test_only_two_phases_are_final():
    assert {phase for phase in Phase if phase.final} == {"Succeeded", "Failed"}
