"""Setting conditions.  Pure: the time is passed in, and a list goes out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from cdi.api.meta import Condition
from cdi.api.phases import ConditionStatus
from cdi.api.timestamps import timestamp

MAX_MESSAGE = 32768
"""Characters; Kubernetes' own limit for conditions."""


def find_condition(conditions: Iterable[Condition] | None, kind: str) -> Condition | None:
    """The condition of that type."""
    return next((condition for condition in conditions or () if condition.type == kind), None)


def is_true(conditions: Iterable[Condition] | None, kind: str) -> bool:
    """Whether the condition is there and True."""
    found = find_condition(conditions, kind)
    return found is not None and found.status == ConditionStatus.TRUE


def set_condition(
    conditions: Sequence[Condition] | None,
    kind: str,
    *,
    status: bool | ConditionStatus,
    reason: str,
    message: str = "",
    now: dt.datetime,
    heartbeat: dt.timedelta | None = None,
) -> list[Condition]:
    """The conditions with one of them set, the others as they were, in the same order.

    ``lastTransitionTime`` moves only when the status changes, ``lastHeartbeatTime`` when anything does.  So the same
    call again changes nothing, unless `heartbeat` is given and the last sign of life is older than that.
    """
    word = ConditionStatus(str(status)) if isinstance(status, bool) else status
    old = find_condition(conditions, kind)
    moment = timestamp(now)
    content = {"status": str(word), "reason": reason, "message": message[:MAX_MESSAGE]}
    if old is None:
        fresh = Condition(type=kind, last_transition_time=moment, last_heartbeat_time=moment, **content)
        return [*(conditions or ()), fresh]
    same = (old.status, old.reason or "", old.message or "") == (str(word), reason, content["message"])
    if same and not _stale(old.last_heartbeat_time, now, heartbeat):
        return list(conditions or ())
    changes = content | {"last_heartbeat_time": moment}
    if old.status != word or not old.last_transition_time:
        changes["last_transition_time"] = moment
    changed = old.model_copy(update=changes)
    return [changed if condition is old else condition for condition in conditions or ()]


def _stale(last: str | None, now: dt.datetime, heartbeat: dt.timedelta | None) -> bool:
    if heartbeat is None:
        return False
    if not last:
        return True
    try:
        moment = dt.datetime.fromisoformat(last)
    except ValueError:
        return True
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return now - moment >= heartbeat
