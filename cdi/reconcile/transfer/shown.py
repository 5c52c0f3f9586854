"""Status and events of a transfer."""

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
"""Maximum delay in seconds before a rejected request is retried."""
_SOON: Final = 5.0
"""Initial delay in seconds; what is missing is usually created together with the transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The state of a transfer and the actions that follow."""

    phase: TransferPhase
    reason: str
    message: str
    actions: tuple[Action, ...] = ()
    record: TransferRecord | None = None
    warns: bool = False
    """Whether a user may have to act."""


def moving(record: TransferRecord, message: str, *actions: Action) -> Step:
    """Return the state of a transfer that proceeds without user action."""
    return Step(
        phase=TransferPhase.RUNNING, reason=TransferReason.MOVING, message=message, actions=actions, record=record
    )


def stuck(record: TransferRecord, reason: str, message: str) -> Step:
    """Return the state of a started transfer that needs a user's action."""
    return Step(phase=TransferPhase.RUNNING, reason=reason, message=message, record=record, warns=True)


def error(failure: CdiError, record: TransferRecord | None = None, *actions: Action) -> Step:
    """Return the final failed state."""
    return Step(
        phase=TransferPhase.ERROR,
        reason=failure.code,
        message=failure.message,
        actions=actions,
        record=record,
        warns=True,
    )


def complete(*actions: Action) -> Step:
    """Return the final successful state, without the record."""
    return Step(
        phase=TransferPhase.COMPLETE, reason=TransferReason.COMPLETE, message="Transfer complete", actions=actions
    )


def refused(world: TransferWorld, refusal: Refusal) -> Plan:
    """Return the plan after a rejected action: the phase stays, and the message gives the reason."""
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
    """Return the delay in seconds, which grows with the time that the transfer has taken."""
    status = world.transfer.status
    known = find_condition(status.conditions if status is not None else None, ConditionType.COMPLETE)
    try:
        since = datetime.fromisoformat((known and known.last_transition_time) or "").timestamp()
    except ValueError:
        since = world.now
    return min(max((world.now - since) / 2, _SOON), PATIENCE)


def shown(world: TransferWorld, step: Step, *, requeue_after: float | None = None) -> Plan:
    """Return the step's actions with the new status and its events."""
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
