"""Tests of status throttling: which writes are delayed, which never are, and that the rest of a plan is unchanged."""

from typing import Any

import pytest

from cdi.api.names import (
    ANN_BOUND_CONDITION_MESSAGE,
    ANN_POD_PHASE,
    ANN_POD_READY,
    ANN_RUNNING_CONDITION_MESSAGE,
)
from cdi.controller.request import datavolume
from cdi.controller.status_throttle import MAX_DELAY, MIN_INTERVAL, RATE, StatusThrottle
from cdi.reconcile.actions import CreateObject, DeleteObject, Event, PatchObject, Plan
from cdi.reconcile.datavolume.attempts import ANNOTATION

CLAIM = "persistentvolumeclaims"
KEY, OTHER = datavolume("vms", "golden"), datavolume("vms", "other")
WORK = DeleteObject(plural=CLAIM, namespace="vms", name="prime", uid="2")
PENDING = {
    "phase": "Pending",
    "claimName": "golden",
    "conditions": [{"type": "Ready", "status": "False", "reason": "a"}],
}
ABOUT = {"status": PENDING}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def patch(
    annotations: dict[str, str | None] | None = None, name: str = "golden", plural: str = CLAIM, **others: Any
) -> PatchObject:
    told = {ANN_BOUND_CONDITION_MESSAGE: "waits"} if annotations is None else annotations
    return PatchObject(plural=plural, namespace="vms", name=name, uid="1", annotations=told, **others)


def told_at(clock: Clock) -> StatusThrottle:
    """Return a throttle that has just let through a write about KEY."""
    throttle = StatusThrottle(clock)
    assert throttle.filter(KEY, Plan(actions=(patch(),)), ABOUT).actions
    clock.now += 0.25
    return throttle


def test_the_second_word_waits_and_the_first_does_not() -> None:
    clock = Clock()
    throttle = told_at(clock)
    plan = Plan(actions=(patch(), WORK, patch()), status={**PENDING, "progress": "1%"}, requeue_after=30.0)
    paced = throttle.filter(KEY, plan, ABOUT)
    assert paced.actions == (WORK,)
    assert paced.status is None
    assert paced.requeue_after == pytest.approx(MIN_INTERVAL - 0.25)
    assert throttle.filter(OTHER, plan, ABOUT) == plan
    clock.now += MIN_INTERVAL
    assert throttle.filter(KEY, plan, ABOUT) == plan


def test_an_earlier_look_stays() -> None:
    clock = Clock()
    throttle = told_at(clock)
    assert throttle.filter(KEY, Plan(actions=(patch(),), requeue_after=0.1), ABOUT).requeue_after == 0.1


@pytest.mark.parametrize(
    "plan",
    [
        Plan(actions=(patch(),), events=(Event(type="Warning", reason="ErrStartingPod", message="it is not"),)),
        Plan(status={**PENDING, "phase": "ImportInProgress"}),
        Plan(status={**PENDING, "claimName": "another"}),
        Plan(status={**PENDING, "conditions": [{"type": "Ready", "status": "True", "reason": "a"}]}),
        Plan(status={**PENDING, "conditions": [*PENDING["conditions"], {"type": "Running", "reason": "Error"}]}),
        Plan(actions=(patch({ANN_POD_PHASE: "Running"}),)),
        Plan(actions=(patch({ANN_POD_READY: "true"}),)),
    ],
)
def test_what_somebody_waits_for_is_told_at_once(plan: Plan) -> None:
    assert told_at(Clock()).filter(KEY, plan, ABOUT) == plan


@pytest.mark.parametrize(
    "action",
    [
        patch({ANNOTATION: "{}", ANN_RUNNING_CONDITION_MESSAGE: "x"}),
        patch(plural="datavolumes"),
        patch(version="7"),
        patch(owner={"uid": "9"}),
        patch(labels={"a": "b"}),
        WORK,
    ],
)
def test_what_a_reconcile_rests_on_is_never_put_off(action: Any) -> None:
    plan = Plan(actions=(action,), requeue_after=5.0)
    assert told_at(Clock()).filter(KEY, plan, ABOUT) == plan


def test_a_clock_that_was_set_back_keeps_nobody_waiting() -> None:
    clock = Clock()
    throttle = told_at(clock)
    clock.now -= 3600
    plan = Plan(actions=(patch(),))
    assert throttle.filter(KEY, plan, ABOUT) == plan


def test_what_is_made_is_told_at_once_and_its_status_may_wait() -> None:
    made = CreateObject(body={"kind": "PersistentVolumeClaim"})
    event = Event(type="Normal", reason="CreatedPVCPrimeSuccessfully", message="it is made")
    plan = Plan(actions=(made, patch()), events=(event,), status={**PENDING, "progress": "1%"})
    paced = told_at(Clock()).filter(KEY, plan, ABOUT)
    assert (paced.actions, paced.events, paced.status) == ((made,), (event,), None)
    warning = Event(type="Warning", reason="ErrStartingPod", message="it is not")
    plan = Plan(actions=(made, patch()), events=(event, warning), status=plan.status)
    assert told_at(Clock()).filter(KEY, plan, ABOUT) == plan


def test_what_a_status_says_at_once_claims_say_later() -> None:
    clock = Clock()
    own, prime = patch({ANN_POD_PHASE: "Pending"}), patch({ANN_POD_PHASE: "Pending"}, name="prime")
    running = patch({ANN_POD_PHASE: "Running"}, name="prime")
    plan = Plan(actions=(own, WORK, prime, running), status={**PENDING, "phase": "ImportScheduled"})
    paced = told_at(clock).filter(KEY, plan, ABOUT)
    assert paced.actions == (WORK, running)
    assert paced.status == plan.status
    assert paced.requeue_after is not None
    assert 0 < paced.requeue_after <= MAX_DELAY


@pytest.mark.parametrize("status", [None, {**PENDING, "phase": "Succeeded"}, {**PENDING, "phase": "Failed"}])
def test_an_end_and_what_only_a_claim_says_are_told_everywhere(status: Any) -> None:
    event = Event(type="Normal", reason="ImportSucceeded", message="it is")
    plan = Plan(actions=(patch(), WORK, patch(name="prime")), status=status, events=(event,))
    assert told_at(Clock()).filter(KEY, plan, ABOUT) == plan


def test_of_many_volumes_each_is_told_of_less_often_and_none_for_ever() -> None:
    clock = Clock()
    throttle = StatusThrottle(clock)
    words = Plan(actions=(patch(),))
    keys = [datavolume("vms", f"v{number}") for number in range(200)]
    told = dict.fromkeys(keys, 0)
    seconds = 60
    for _ in range(seconds * 10):
        for key in keys:
            told[key] += bool(throttle.filter(key, words, ABOUT).actions)
        clock.now += 0.1
    assert all(count >= seconds // MAX_DELAY for count in told.values())
    # At first the number of keys is not known.
    assert sum(told.values()) <= len(keys) * (1 + seconds / MAX_DELAY) + RATE * seconds


def test_a_few_volumes_are_told_of_once_a_second() -> None:
    clock = Clock()
    throttle = StatusThrottle(clock)
    keys = [datavolume("vms", f"v{number}") for number in range(int(RATE))]
    told = 0
    for _ in range(100):
        told += sum(bool(throttle.filter(key, Plan(actions=(patch(),)), ABOUT).actions) for key in keys)
        clock.now += 0.1
    assert told >= 9 * len(keys)


def test_what_was_told_long_ago_is_forgotten() -> None:
    clock = Clock()
    throttle = StatusThrottle(clock)
    for number in range(1000):
        throttle.filter(datavolume("vms", f"v{number}"), Plan(actions=(patch(),)), ABOUT)
        clock.now += MIN_INTERVAL
    assert len(throttle._due) <= 101
