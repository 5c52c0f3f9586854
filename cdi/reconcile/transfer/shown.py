"""What is said of a transfer: its status, and the events of what is news."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cdi.api.conditions import find_condition
from cdi.api.errors import CdiError
from cdi.api.phases import ConditionType, TransferPhase, TransferReason
from cdi.reconcile.actions import Action, EventFact, Plan
from cdi.reconcile.status import conditions, no, yes
from cdi.reconcile.transfer.record import TransferRecord
from cdi.reconcile.transfer.world import TransferWorld, place
from cdi.reconcile.world import Refusal

PATIENCE: Final = 60.0
"""Seconds between tries of what the server refuses, at most."""
_SOON: Final = 5.0
"""Seconds until the first try after it: what is lacking is mostly made together with the transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where a transfer is, and what is to be done there."""

    phase: TransferPhase
    reason: str
    message: str
    actions: tuple[Action, ...] = ()
    record: TransferRecord | None = None
    warns: bool = False
    """Somebody may have to do something about it."""


def moving(record: TransferRecord, message: str, *actions: Action) -> Step:
    """It goes on by itself."""
    return Step(
        phase=TransferPhase.RUNNING, reason=TransferReason.MOVING, message=message, actions=actions, record=record
    )


def stuck(record: TransferRecord, reason: str, message: str) -> Step:
    """It has begun, and goes on once somebody does something."""
    return Step(phase=TransferPhase.RUNNING, reason=reason, message=message, record=record, warns=True)


def error(failure: CdiError, record: TransferRecord | None = None, *actions: Action) -> Step:
    """It ends here."""
    return Step(
        phase=TransferPhase.ERROR,
        reason=failure.code,
        message=failure.message,
        actions=actions,
        record=record,
        warns=True,
    )


def complete(*actions: Action) -> Step:
    """Nothing of what was written down is needed any more."""
    return Step(
        phase=TransferPhase.COMPLETE, reason=TransferReason.COMPLETE, message="Transfer complete", actions=actions
    )


def refused(world: TransferWorld, refusal: Refusal) -> Plan:
    """It stands where it was, and says what the server would not do."""
    if world.phase in (TransferPhase.COMPLETE, TransferPhase.ERROR):
        return Plan(requeue_after=PATIENCE)
    failure = refusal.failure
    step = Step(
        phase=TransferPhase.RUNNING if world.phase == TransferPhase.RUNNING else TransferPhase.PENDING,
        reason=failure.code,
        message=failure.message,
        record=world.record,
        warns=True,
    )
    return shown(world, step, requeue_after=_pause(world))


def _pause(world: TransferWorld) -> float:
    """Seconds; the longer, the longer it is under way."""
    status = world.transfer.status
    known = find_condition(status.conditions if status is not None else None, ConditionType.COMPLETE)
    try:
        since = datetime.fromisoformat((known and known.last_transition_time) or "").timestamp()
    except ValueError:
        since = world.now
    return min(max((world.now - since) / 2, _SOON), PATIENCE)


def shown(world: TransferWorld, step: Step, *, requeue_after: float | None = None) -> Plan:
    """The step's actions, and what is said of it."""
    status = _status(world, step)
    before = world.transfer.status.to_dict() if world.transfer.status is not None else None
    changed = status != before
    return Plan(
        actions=step.actions,
        events=_events(world, step) if changed else (),
        status=status if changed else None,
        requeue_after=requeue_after,
    )


def _status(world: TransferWorld, step: Step) -> dict[str, Any]:
    old = (world.transfer.status.conditions if world.transfer.status is not None else None) or []
    aspect = (yes if step.phase == TransferPhase.COMPLETE else no)(step.reason, step.message)
    status: dict[str, Any] = {
        "phase": step.phase.value,
        "conditions": conditions(old, {ConditionType.COMPLETE: aspect}, world.now),
    }
    if step.record is not None:
        status["data"] = step.record.write()
    return status


def _events(world: TransferWorld, step: Step) -> tuple[EventFact, ...]:
    status = world.transfer.status
    known = find_condition(status.conditions if status is not None else None, ConditionType.COMPLETE)
    if step.warns:
        if known is not None and (known.reason, known.message) == (step.reason, step.message):
            return ()
        return (EventFact(type="Warning", reason=step.reason, message=step.message),)
    if step.phase in (world.phase, TransferPhase.PENDING):
        return ()
    message = f"{world.transfer.spec.source.kind} {place(world.source)} to {place(world.target)}: {step.message}"
    return (EventFact(type="Normal", reason=f"Transfer{step.phase.value}", message=message),)
