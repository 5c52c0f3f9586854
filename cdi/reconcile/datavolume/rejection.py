"""State and events after the API server rejected an action."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cdi.api.conditions import find_condition
from cdi.api.errors import CdiError, InvalidManifest, Retry, WorkerPodInvalid
from cdi.api.job import Failure
from cdi.api.names import prime_claim
from cdi.api.phases import ConditionType, EventReason, Phase, Reason
from cdi.reconcile.actions import Action, CreateObject, Event, StartWorker
from cdi.reconcile.context import ReconcileContext, Rejection
from cdi.reconcile.datavolume.result import Result, bound_condition, failed
from cdi.reconcile.datavolume.status import false
from cdi.reconcile.types import PVC

QUOTA = "QuotaExceeded"
RETRY_AFTER = 5.0
"""Seconds until a newly rejected action is retried; the delay grows to `Retries.patience`."""


def refusal_of(action: Action, error: CdiError) -> Rejection:
    """Return the rejection of `action` with the error `error`.

    A pod depends on more than the DataVolume: CDIConfig, the CDI object, and admission webhooks. An invalid pod can
    therefore become valid later, while an invalid PVC cannot, since the DataVolume's spec is immutable.
    """
    if isinstance(action, StartWorker) and isinstance(error, InvalidManifest) and error.retry is Retry.NEVER:
        error = WorkerPodInvalid(error.what, where=error.where)
    return Rejection(action=action, failure=Failure.from_error(error))


def apply_rejection(context: ReconcileContext, claim: PVC | None, result: Result, refusal: Rejection) -> Result:
    """Return the result without its actions, with the rejection in its state and events.

    A rejection that can never succeed is the final failure; any other is retried after a delay.
    """
    failure, action = refusal.failure, refusal.action
    subject, creating = _subject(action), isinstance(action, CreateObject)
    quota = failure.code == QUOTA
    message = f"{subject}: {failure.message}"
    told = _event(action, claim, quota=quota)
    events = (Event(type="Warning", reason=told, message=message),) if told is not None else ()
    if failure.retry is Retry.NEVER and isinstance(action, CreateObject | StartWorker):
        end = failed(claim, failure)
        bound = false(Reason.ERR_CLAIM_NOT_VALID, message) if creating else end.state.bound
        return replace(end, state=replace(end.state, bound=bound), events=events, attempts=result.attempts)
    reason = Reason.ERR_EXCEEDED_QUOTA if quota else failure.code
    state = replace(result.state, running=false(reason, message), ready=false(failure.code, message))
    if creating:
        bound = false(Reason.ERR_EXCEEDED_QUOTA if quota else Reason.ERR_CLAIM_NOT_VALID, message)
        state = replace(state, bound=bound)
        if claim is None:
            state = replace(state, phase=Phase.PENDING, running=false(), claim_name=None)
    elif claim is not None:
        state = replace(state, bound=bound_condition(claim))
    return replace(
        result,
        state=state,
        actions=(),
        events=events,
        requeue_after=_pause(context) if failure.retry is Retry.ON_CHANGE else context.retries.base,
    )


def _pause(context: ReconcileContext) -> float:
    """Return the delay in seconds.

    It grows with the time since the Ready condition changed: what is missing is usually created together with the
    DataVolume, or later by a person.
    """
    status = context.datavolume.status
    ready = find_condition(status.conditions, ConditionType.READY) if status is not None else None
    try:
        since = datetime.fromisoformat((ready and ready.last_transition_time) or "").timestamp()
    except ValueError:
        since = context.now
    return min(max((context.now - since) / 2, RETRY_AFTER), context.retries.patience)


def _subject(action: object) -> str:
    if isinstance(action, CreateObject):
        metadata = action.body["metadata"]
        return f"{_SHORT.get(action.body['kind'], action.body['kind'])} {metadata['name']} cannot be created"
    if isinstance(action, StartWorker):
        name = action.pod["metadata"]["name"] if action.pod is not None else ""
        return f"Pod {name} cannot be created"
    return f"{type(action).__name__} failed"


_SHORT = {"PersistentVolumeClaim": "PVC"}


def _event(action: object, claim: PVC | None, *, quota: bool) -> EventReason | None:
    if quota:
        return EventReason.ERR_EXCEEDED_QUOTA
    if isinstance(action, CreateObject):
        name = action.body["metadata"]["name"]
        if claim is not None and name == prime_claim(claim.uid):
            return EventReason.ERR_CREATING_PVC_PRIME
        return EventReason.ERR_CLAIM_NOT_VALID
    return EventReason.ERR_STARTING_POD if isinstance(action, StartWorker) else None
