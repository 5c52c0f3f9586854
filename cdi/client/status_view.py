"""Interpretation of a stored object's status."""

from __future__ import annotations

from cdi.api.conditions import find_condition
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, Retry, by_code
from cdi.api.job import Failure
from cdi.api.phases import FAILING, ConditionType, Phase
from cdi.api.status_detail import status_detail
from cdi.api.validation import parse
from cdi.store.base import Object

_STANDING = frozenset(
    {Phase.PENDING, Phase.WAIT_FOR_FIRST_CONSUMER, Phase.PENDING_POPULATION, Phase.IMPORT_SCHEDULED, Phase.PAUSED}
)


def failure_of(body: Object) -> Failure | None:
    """Return the error that a DataVolume failed with or is waiting to retry, or None."""
    dv = parse({**body, "spec": {}})  # the spec may have been stored under other rules, and is not needed
    if not isinstance(dv, DataVolume) or dv.status is None:
        return None
    running = find_condition(dv.status.conditions, ConditionType.RUNNING)
    phase = dv.status.phase
    if running is None or phase == Phase.SUCCEEDED:
        return None
    if phase != Phase.FAILED and running.reason not in FAILING:
        return None
    code, message = status_detail(body)
    kind = by_code(code)
    retry = Retry.NEVER if phase == Phase.FAILED else kind.retry
    if phase == Phase.UPLOAD_READY and retry is Retry.BACKOFF:
        retry = Retry.ON_CHANGE  # no automatic retry: a client has to send the image again
    return Failure(code=code or kind.__name__, message=message, retry=retry, exit_status=kind.exit_status)


def blocked_reason(body: Object) -> str:
    """Return why a DataVolume makes no progress, or an empty string if it does."""
    failure = failure_of(body)
    if failure is not None:
        return failure.message
    if phase_of(body) in _STANDING:
        return status_detail(body)[1]
    return ""


def raise_failure(body: Object, *, patient: bool) -> None:
    """Raise the error that a DataVolume ended with; unless `patient`, also one that requires intervention."""
    failure = failure_of(body)
    if failure is None:
        return
    if failure.retry is Retry.NEVER or (failure.retry is Retry.ON_CHANGE and not patient):
        raise error_of(failure)


def error_of(failure: Failure) -> CdiError:
    """Return a failure as an exception with the same code, message and exit status."""
    return by_code(failure.code)(failure.message, remedy="")


def phase_of(body: Object) -> Phase:
    text = (body.get("status") or {}).get("phase") or ""
    return next((phase for phase in Phase if phase == text), Phase.UNKNOWN)


def restarts_of(body: Object) -> int:
    """Return how many attempts to fill the volume were begun after the first."""
    return int((body.get("status") or {}).get("restartCount") or 0)


def reached(body: Object, until: str) -> bool:
    status = body.get("status") or {}
    if (status.get("phase") or "") == until:
        return True
    return any(c.get("type") == until and c.get("status") == "True" for c in status.get("conditions") or [])


def summary(body: Object) -> str:
    """Return the phase and its reason, for a message."""
    reason, message = status_detail(body)
    why = message or reason
    phase = (body.get("status") or {}).get("phase") or "not reconciled yet"
    return f"{phase}: {why}" if why else str(phase)
