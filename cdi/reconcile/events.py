"""Events of a DataVolume: one for each new phase and for each new failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cdi.api.conditions import find_condition
from cdi.api.datavolume import DataVolume
from cdi.api.phases import FAILING, ConditionStatus, ConditionType, EventReason, Phase, Reason
from cdi.reconcile.actions import Event
from cdi.reconcile.context import Operation
from cdi.reconcile.status import DataVolumeState

_STEPS = {
    Phase.IMPORT_SCHEDULED: "scheduled",
    Phase.CLONE_SCHEDULED: "scheduled",
    Phase.UPLOAD_SCHEDULED: "scheduled",
    Phase.IMPORT_IN_PROGRESS: "in progress",
    Phase.CLONE_IN_PROGRESS: "in progress",
    Phase.UPLOAD_READY: "ready",
    Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS: "takes a snapshot",
    Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS: "is restored from a snapshot",
    Phase.SMART_CLONE_PVC_IN_PROGRESS: "is restored from a snapshot",
    Phase.CSI_CLONE_IN_PROGRESS: "is cloned by the storage",
    Phase.EXPANSION_IN_PROGRESS: "grows",
    Phase.PREP_CLAIM_IN_PROGRESS: "is prepared",
    Phase.REBIND_IN_PROGRESS: "is bound to its volume",
    Phase.NAMESPACE_TRANSFER_IN_PROGRESS: "receives its volume from another namespace",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The events of one reconcile."""

    steps: tuple[Event, ...] = ()
    """Phase changes, and the result's own events."""
    failure: tuple[Event, ...] = ()
    """Failed attempts, with the reason of the Running condition, to record on the DataVolume."""
    claim: tuple[Event, ...] = ()
    """Failed attempts, to record on the PVC."""


EVENT_OF_CLAIM: Mapping[Operation, EventReason] = {
    "Import": EventReason.ERR_IMPORT_FAILED,
    "Upload": EventReason.UPLOAD_FAILED,
    "Clone": EventReason.CLONE_FAILED,
}
"""Reason of the PVC's event about a failed attempt."""


def events_for_transition(
    dv: DataVolume, operation: Operation, state: DataVolumeState, others: tuple[Event, ...]
) -> Events:
    """Return the events for the change from the DataVolume's current status to `state`.

    A failed attempt gives two events, on the DataVolume and on the PVC, as in KubeVirt's CDI.

    Args:
        dv: The DataVolume with its current status.
        operation: The DataVolume's operation.
        state: The new state.
        others: Further events, included only if the Ready message changes.

    """
    before = (dv.status.phase if dv.status else None) or ""
    known = dv.status.conditions if dv.status else None
    running, ready = find_condition(known, ConditionType.RUNNING), find_condition(known, ConditionType.READY)
    events: list[Event] = []
    name = dv.metadata.name
    if state.phase != before:
        match state.phase:
            case Phase.SUCCEEDED:
                text = state.ready.message
                message = f"{operation} into {name} succeeded{f': {text}' if text else ''}"
                events.append(Event(type="Normal", reason=f"{operation}Succeeded", message=message))
            case Phase.FAILED:
                reason = _failure_reason(operation, state)
                events.append(Event(type="Warning", reason=reason, message=_coded(state)))
            case phase if phase in _STEPS:
                events.append(
                    Event(type="Normal", reason=phase.value, message=f"{operation} into {name} {_STEPS[phase]}")
                )
            case _:
                pass
    failing = state.running.status is ConditionStatus.FALSE and state.running.reason in FAILING
    news = running is None or (running.reason, running.message) != (state.running.reason, state.running.message)
    if ready is None or ready.message != state.ready.message:
        events.extend(others)
    if not (failing and news):
        return Events(steps=tuple(events))
    failure = Event(type="Warning", reason=state.running.reason, message=_coded(state))
    of_claim = EVENT_OF_CLAIM[operation]
    return Events(
        steps=tuple(events),
        # The final failure has an event of its own.
        failure=() if state.phase is Phase.FAILED else (failure,),
        claim=(replace(failure, reason=of_claim),),
    )


def _failure_reason(operation: Operation, state: DataVolumeState) -> str:
    if state.ready.reason == Reason.CLAIM_LOST:
        return "ErrClaimLost"
    if state.ready.reason == EventReason.CLAIM_MISBOUND:
        return EventReason.CLAIM_MISBOUND
    if state.ready.reason == "AlreadyExists":
        return "ErrResourceExists"
    if operation == "Clone" and state.ready.reason == "TargetTooSmall" and not state.claim_name:
        return "CloneValidationFailed"
    return f"{operation}Failed"


def _coded(state: DataVolumeState) -> str:
    return f"[{state.ready.reason}] {state.running.message or state.ready.message}"
