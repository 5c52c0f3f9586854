"""What is put off, what never is, and that the rest of a plan is as it was."""

from typing import Any

import pytest

from cdi.api.names import (
    ANN_BOUND_CONDITION_MESSAGE,
    ANN_POD_PHASE,
    ANN_POD_READY,
    ANN_RUNNING_CONDITION_MESSAGE,
)
from cdi.controller.keys import volume
from cdi.controller.pacing import PACE, Pacing
from cdi.reconcile.actions import DeleteObject, EventFact, PatchObject, Plan
from cdi.reconcile.ledger import ANNOTATION

KEY, OTHER = volume("vms", "golden"), volume("vms", "other")
WORK = DeleteObject(plural="persistentvolumeclaims", namespace="vms", name="prime", uid="2")
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


def patch(**annotations: Any) -> PatchObject:
    told = annotations.pop("annotations", {ANN_BOUND_CONDITION_MESSAGE: "waits"})
    return PatchObject(
        plural="persistentvolumeclaims", namespace="vms", name="golden", uid="1", annotations=told, **annotations
    )


def told_at(clock: Clock) -> Pacing:
    """Something was told of KEY just now."""
    pacing = Pacing(clock)
    assert pacing.paced(KEY, Plan(actions=(patch(),)), ABOUT).actions
    clock.now += 0.25
    return pacing


def test_the_second_word_waits_and_the_first_does_not() -> None:
    clock = Clock()
    pacing = told_at(clock)
    plan = Plan(actions=(patch(), WORK, patch()), status={**PENDING, "progress": "1%"}, requeue_after=30.0)
    paced = pacing.paced(KEY, plan, ABOUT)
    assert paced.actions == (WORK,)
    assert paced.status is None
    assert paced.requeue_after == pytest.approx(PACE - 0.25)
    assert pacing.paced(OTHER, plan, ABOUT) == plan
    clock.now += PACE
    assert pacing.paced(KEY, plan, ABOUT) == plan


def test_an_earlier_look_stays() -> None:
    clock = Clock()
    pacing = told_at(clock)
    assert pacing.paced(KEY, Plan(actions=(patch(),), requeue_after=0.1), ABOUT).requeue_after == 0.1


@pytest.mark.parametrize(
    "plan",
    [
        Plan(actions=(patch(),), events=(EventFact(type="Normal", reason="ImportScheduled", message="it is"),)),
        Plan(status={**PENDING, "phase": "ImportInProgress"}),
        Plan(status={**PENDING, "claimName": "another"}),
        Plan(status={**PENDING, "conditions": [{"type": "Ready", "status": "True", "reason": "a"}]}),
        Plan(actions=(patch(annotations={ANN_POD_PHASE: "Running"}),)),
        Plan(actions=(patch(annotations={ANN_POD_READY: "true"}),)),
    ],
)
def test_what_somebody_waits_for_is_told_at_once(plan: Plan) -> None:
    assert told_at(Clock()).paced(KEY, plan, ABOUT) == plan


@pytest.mark.parametrize(
    "action",
    [
        patch(annotations={ANNOTATION: "{}", ANN_RUNNING_CONDITION_MESSAGE: "x"}),
        patch(version="7"),
        patch(owner={"uid": "9"}),
        patch(labels={"a": "b"}),
        WORK,
    ],
)
def test_what_a_reconcile_rests_on_is_never_put_off(action: Any) -> None:
    plan = Plan(actions=(action,), requeue_after=5.0)
    assert told_at(Clock()).paced(KEY, plan, ABOUT) == plan


def test_a_clock_that_was_set_back_keeps_nobody_waiting() -> None:
    clock = Clock()
    pacing = told_at(clock)
    clock.now -= 3600
    plan = Plan(actions=(patch(),))
    assert pacing.paced(KEY, plan, ABOUT) == plan


def test_what_was_told_long_ago_is_forgotten() -> None:
    clock = Clock()
    pacing = Pacing(clock)
    for number in range(100):
        pacing.paced(volume("vms", f"v{number}"), Plan(actions=(patch(),)), ABOUT)
        clock.now += PACE / 4
    assert len(pacing._told) <= 4
