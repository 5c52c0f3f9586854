"""Status and events of a transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cdi.api.conditions import find_condition
from cdi.api.errors import CdiError
from cdi.api.phases import ConditionType, TransferPhase, TransferReason
from cdi.reconcile.actions import Action, Event, Plan
from cdi.reconcile.context import Rejection
from cdi.reconcile.datavolume.status import conditions, false, true
from cdi.reconcile.objecttransfer.context import TransferWorld, place
from cdi.reconcile.objecttransfer.record import TransferRecord

PHASE_TIMEOUT: Final = 60.0
"""Maximum delay in seconds before a rejected request is retried."""
_REQUEUE_DELAY: Final = 5.0
"""Initial delay in seconds; what is missing is usually created together with the transfer."""
_MAX_REASON: Final = 1024
"""Maximum length of a reason in characters; Kubernetes' limit for conditions."""
_WORDS: Final[Mapping[str, str]] = {
    TransferReason.NO_SOURCE: "No source",
    TransferReason.NOT_POPULATED: "Source not populated",
    TransferReason.NOT_BOUND: "PVC not bound",
    TransferReason.STARTING: "Pending",
    TransferReason.MOVING: "Running",
    TransferReason.BINDING: "Waiting for target to be bound",
}
"""Beginning of the condition's message for each reason, letter for letter the message of KubeVirt's CDI."""


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
    code: str = ""
    """Reason of the event, if `reason` is a text."""

    @property
    def shown(self) -> str:
        """The condition's message: the words of KubeVirt's CDI, then the details."""
        words = "Error" if self.code else _WORDS.get(self.reason)
        return f"{words}: {self.message}" if words else self.message


def running(record: TransferRecord, message: str, *actions: Action) -> Step:
    """Return the state of a transfer that proceeds without user action."""
    return Step(
        phase=TransferPhase.RUNNING, reason=TransferReason.MOVING, message=message, actions=actions, record=record
    )


def blocked(record: TransferRecord, reason: str, message: str) -> Step:
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


def refused(context: TransferWorld, refusal: Rejection) -> Plan:
    """Return the plan after a rejected action: the phase stays.

    The condition's reason is the text of the error, as in KubeVirt's CDI; programs search it for "exceeded quota".
    """
    if context.phase in (TransferPhase.COMPLETE, TransferPhase.ERROR):
        return Plan(requeue_after=PHASE_TIMEOUT)
    failure = refusal.failure
    step = Step(
        phase=TransferPhase.RUNNING if context.phase == TransferPhase.RUNNING else TransferPhase.PENDING,
        reason=failure.message[:_MAX_REASON],
        message=failure.message,
        record=context.record,
        warns=True,
        code=failure.code,
    )
    return shown(context, step, requeue_after=_pause(context))


def _pause(context: TransferWorld) -> float:
    """Return the delay in seconds, which grows with the time that the transfer has taken."""
    status = context.transfer.status
    known = find_condition(status.conditions if status is not None else None, ConditionType.COMPLETE)
    try:
        since = datetime.fromisoformat((known and known.last_transition_time) or "").timestamp()
    except ValueError:
        since = context.now
    return min(max((context.now - since) / 2, _REQUEUE_DELAY), PHASE_TIMEOUT)


def shown(context: TransferWorld, step: Step, *, requeue_after: float | None = None) -> Plan:
    """Return the step's actions with the new status and its events."""
    status = _status(context, step)
    before = context.transfer.status.to_dict() if context.transfer.status is not None else None
    changed = status != before
    return Plan(
        actions=step.actions,
        events=_events(context, step) if changed else (),
        status=status if changed else None,
        requeue_after=requeue_after,
    )


def _status(context: TransferWorld, step: Step) -> dict[str, Any]:
    old = (context.transfer.status.conditions if context.transfer.status is not None else None) or []
    aspect = (true if step.phase == TransferPhase.COMPLETE else false)(step.reason, step.shown)
    status: dict[str, Any] = {
        "phase": step.phase.value,
        "conditions": conditions(old, {ConditionType.COMPLETE: aspect}, context.now),
    }
    if step.record is not None:
        status["data"] = step.record.write()
    return status


def _events(context: TransferWorld, step: Step) -> tuple[Event, ...]:
    status = context.transfer.status
    known = find_condition(status.conditions if status is not None else None, ConditionType.COMPLETE)
    if step.warns:
        if known is not None and (known.reason, known.message) == (step.reason, step.shown):
            return ()
        return (Event(type="Warning", reason=step.code or step.reason, message=step.message),)
    if step.phase in (context.phase, TransferPhase.PENDING):
        return ()
    message = f"{context.transfer.spec.source.kind} {place(context.source)} to {place(context.target)}: {step.message}"
    return (Event(type="Normal", reason=f"Transfer{step.phase.value}", message=message),)
