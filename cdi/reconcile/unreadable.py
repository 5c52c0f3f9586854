"""What is said of an object that cannot be read: one that was stored before the rules were what they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.meta import Condition
from cdi.api.phases import PROGRESS_UNKNOWN, ConditionType, Phase, Reason
from cdi.reconcile.actions import EventFact, Plan
from cdi.reconcile.status import conditions, no

_FINAL: Final = (Phase.SUCCEEDED, Phase.FAILED)
_ASPECTS: Final[Mapping[str, tuple[ConditionType, ...]]] = {
    "DataVolume": (ConditionType.READY, ConditionType.RUNNING),
    "DataSource": (ConditionType.READY,),
    "DataImportCron": (ConditionType.PROGRESSING, ConditionType.UP_TO_DATE),
}
"""Conditions that are not met, of the kinds that have any which their users look at."""


def complain(body: Mapping[str, Any], error: InvalidManifest, now: float) -> Plan:
    """An event with the cause, and conditions with it where the kind has some.

    `body` is what is known of the object.  A DataVolume that has come to its end keeps its status: its volume is what
    it was.
    """
    event = EventFact(type="Warning", reason=error.code, message=error.message)
    kinds = _ASPECTS.get(str(body.get("kind")), ())
    before = _status(body)
    if not kinds or before.get("phase") in _FINAL:
        return Plan(events=(event,))
    aspects = {
        # As of a worker that failed: clients take that for the error that it is.
        kind: no(Reason.ERROR if kind is ConditionType.RUNNING else error.code, error.message)
        for kind in kinds
    }
    status: dict[str, Any] = {**before, "conditions": conditions([*_conditions(before)], aspects, now)}
    if body.get("kind") == DataVolume.kind_name():
        status = {"phase": Phase.PENDING.value, "progress": PROGRESS_UNKNOWN, "restartCount": 0, **status}
    return Plan(events=(event,), status=None if status == before else status)


def _status(body: Mapping[str, Any]) -> Mapping[str, Any]:
    status = body.get("status")
    return status if isinstance(status, Mapping) else {}


def _conditions(status: Mapping[str, Any]) -> Iterator[Condition]:
    """Those that can be read."""
    for one in status.get("conditions") or ():
        with contextlib.suppress(ValidationError):
            yield Condition.model_validate(one, by_alias=True, by_name=False)
