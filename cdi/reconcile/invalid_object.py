"""Events and conditions of an object that its controller cannot process.

It was stored before a validation rule was added and cannot be read, or what has to be written for it cannot be written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError
from cdi.api.meta import Condition
from cdi.api.phases import PROGRESS_UNKNOWN, TERMINAL_PHASES, ConditionType, Phase, Reason
from cdi.reconcile.actions import Event, Plan
from cdi.reconcile.datavolume.status import ConditionValue, conditions, false

_ASPECTS: Final[Mapping[str, tuple[ConditionType, ...]]] = {
    "DataVolume": (ConditionType.READY, ConditionType.RUNNING),
    "DataSource": (ConditionType.READY,),
    "DataImportCron": (ConditionType.PROGRESSING, ConditionType.UP_TO_DATE),
}
"""Conditions to set to False, by kind; kinds without conditions that users read are omitted."""


def report_invalid(body: Mapping[str, Any], error: CdiError, now: float) -> Plan:
    """Return an event with the cause, and conditions if the kind has some.

    A DataVolume in a final phase keeps its status, because its volume has not changed.

    Args:
        body: The object as far as it is known.
        error: The cause.
        now: Seconds since the epoch.

    """
    event = Event(type="Warning", reason=error.code, message=error.message)
    kinds = _ASPECTS.get(str(body.get("kind")), ())
    before = _status(body)
    if not kinds or before.get("phase") in TERMINAL_PHASES:
        return Plan(events=(event,))
    aspects = {
        # The reason of a failed worker, which clients recognize as an error.
        kind: _condition(body, kind, error)
        for kind in kinds
    }
    status: dict[str, Any] = {**before, "conditions": conditions([*_conditions(before)], aspects, now)}
    if body.get("kind") == DataVolume.kind_name():
        detail = {"reason": error.code, "message": error.message}
        initial = {"phase": Phase.PENDING.value, "progress": PROGRESS_UNKNOWN, "restartCount": 0}
        status = {**initial, **status, "detail": detail}
    return Plan(events=(event,), status=None if status == before else status)


def _condition(body: Mapping[str, Any], kind: ConditionType, error: CdiError) -> ConditionValue:
    if kind is ConditionType.RUNNING:
        return false(Reason.ERROR, error.message)
    # As after any other failure the cause is in the detail of a DataVolume, and Ready has none.
    return false() if body.get("kind") == DataVolume.kind_name() else false(error.code, error.message)


def _status(body: Mapping[str, Any]) -> Mapping[str, Any]:
    status = body.get("status")
    return status if isinstance(status, Mapping) else {}


def _conditions(status: Mapping[str, Any]) -> Iterator[Condition]:
    """Yield the valid conditions."""
    for one in status.get("conditions") or ():
        with contextlib.suppress(ValidationError):
            yield Condition.model_validate(one, by_alias=True, by_name=False)
