"""Events of a DataVolume: one for each new phase and for each new failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cdi.api.conditions import find_condition
from cdi.api.datavolume import DataVolume
from cdi.api.job import Failure
from cdi.api.phases import FAILING, ConditionStatus, ConditionType, EventReason, Phase, Reason
from cdi.api.status_detail import status_detail
from cdi.reconcile.actions import Event
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.result import Result, not_running, provisioning_event
from cdi.reconcile.datavolume.retrying import SCRATCH_NEEDED
from cdi.reconcile.datavolume.status import DataVolumeState
from cdi.reconcile.datavolume.status_table import EVENTS, FAILURES, Course, EventText, Names
from cdi.reconcile.types import PVC, Clone, ExternalPopulator, Operation, ResolvedSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The events of one reconcile."""

    steps: tuple[Event, ...] = ()
    """Phase changes, and the result's own events."""
    failure: tuple[Event, ...] = ()
    """Failed attempts, with the reason of the Running condition, to record on the DataVolume."""
    claim: tuple[Event, ...] = ()
    """Failed attempts and problems of the prime PVC, to record on the PVC."""
    bound: tuple[Event, ...] = ()
    """Changes of the Bound condition, to record on the DataVolume."""


EVENT_OF_CLAIM: Mapping[Operation, EventReason] = {
    "Import": EventReason.ERR_IMPORT_FAILED,
    "Upload": EventReason.UPLOAD_FAILED,
    "Clone": EventReason.CLONE_FAILED,
}
"""Reason of the PVC's event about a failed attempt."""


def course_of(dv: DataVolume, origin: ResolvedSource, operation: Operation) -> tuple[Course, Names]:
    """Return what provides the content, and the names in texts about it."""
    metadata = dv.metadata
    names = Names(namespace=metadata.namespace or "", name=metadata.name or "")
    if isinstance(origin, ExternalPopulator):
        return Course.EXTERNAL, replace(names, populator=origin.name)
    reference = dv.spec.source_ref
    if reference is not None:
        names = replace(names, source=f"DataSource {reference.namespace or names.namespace}/{reference.name}")
    if isinstance(origin, Clone):
        kind: Literal["pvc", "snapshot"] = "snapshot" if origin.kind == "VolumeSnapshot" else "pvc"
        names = replace(names, kind=kind, source=f"{origin.namespace}/{origin.name}")
    return Course(operation), names


def events_for_transition(
    context: ReconcileContext,
    claim: PVC | None,
    source: ResolvedSource,
    operation: Operation,
    result: Result,
) -> Events:
    """Return the events for the change from the DataVolume's current status to that of `result`.

    A failed attempt gives two events, on the DataVolume and on the PVC, as in KubeVirt's CDI.

    Args:
        context: The observed state, with the DataVolume's current status.
        claim: The PVC; None if there is none.
        source: The DataVolume's source.
        operation: The DataVolume's operation.
        result: The new state; its own events are included only if the detail's message changes.

    """
    dv, state = context.datavolume, result.state
    before = (dv.status.phase if dv.status else None) or ""
    known = dv.status.conditions if dv.status else None
    running, bound = find_condition(known, ConditionType.RUNNING), find_condition(known, ConditionType.BOUND)
    events: list[Event] = []
    if state.phase != before:
        course, names = course_of(dv, source, operation)
        text = EVENTS.get((course, state.phase)) or EVENTS.get((Course(operation), state.phase))
        if text is not None:
            events.append(_phase_event(text, names, operation, state))
    failing = state.running.status is ConditionStatus.FALSE and state.running.reason in FAILING
    news = running is None or (running.reason, running.message) != (state.running.reason, state.running.message)
    if dv.status is None or status_detail(dv.to_dict())[1] != state.ready.message:
        events.extend(result.events)
    now = (state.bound.status, state.bound.reason, state.bound.message)
    rebound = bound is None or (bound.status, bound.reason or "", bound.message or "") != now
    prime = _prime_events(context.prime, claim) if rebound else ()
    # A warning with the same reason has the remedy as well.
    told = not rebound or any(event.reason == state.bound.reason for event in events)
    failures = [Event(type="Warning", reason=state.running.reason, message=_coded(state))] if failing and news else []
    unseen = _attempt_failed(source, result.unseen) if result.unseen is not None else None
    if unseen is not None and not (failing and unseen.message == _coded(state)):
        failures.insert(0, unseen)
    # The final failure has an event of its own on the DataVolume.
    final = state.phase is Phase.FAILED and failing and news
    return Events(
        steps=(*events, *prime),
        failure=tuple(failures[:-1] if final else failures),
        claim=(*prime, *(replace(failure, reason=EVENT_OF_CLAIM[operation]) for failure in failures)),
        bound=() if told else (Event(type="Normal", reason=state.bound.reason, message=state.bound.message),),
    )


def _attempt_failed(source: ResolvedSource, failure: Failure) -> Event | None:
    """Return the event of a failed attempt; None for one that only found that it needs scratch space."""
    if failure.code == SCRATCH_NEEDED:
        return None
    running = not_running(source, failure)
    return Event(type="Warning", reason=running.reason, message=f"[{failure.code}] {running.message}")


def _phase_event(text: EventText, names: Names, operation: Operation, state: DataVolumeState) -> Event:
    message = names.fill(text.message)
    if state.phase is Phase.FAILED:
        reason = _failure_reason(operation, state)
        message = names.fill(FAILURES.get(reason, text.message))
        return Event(type="Warning", reason=reason, message=f"{message}: {_coded(state)}")
    if state.phase is Phase.SUCCEEDED and state.ready.message:
        message = f"{message}: {state.ready.message}"
    return Event(type=text.type, reason=text.reason, message=message)


def _prime_events(prime: PVC | None, claim: PVC | None) -> tuple[Event, ...]:
    """Return the provisioner's warning about the prime PVC."""
    message = provisioning_event(prime, claim) if claim is not None and prime is not None else ""
    if not message or prime is None:
        return ()
    return (
        Event(type="Warning", reason=prime.provisioning_reason or EventReason.PROVISIONING_FAILED, message=message),
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
