"""Pure functions that read and set conditions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from cdi.api.meta import Condition
from cdi.api.phases import ConditionStatus
from cdi.api.timestamps import timestamp

MAX_MESSAGE = 32768
"""Maximum length of a message in characters; Kubernetes' limit for conditions."""


def find_condition(conditions: Iterable[Condition] | None, kind: str) -> Condition | None:
    """Return the condition of type `kind`, None if there is none."""
    return next((condition for condition in conditions or () if condition.type == kind), None)


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
    """Return the conditions with one of them set; the order and the other conditions are kept.

    ``lastTransitionTime`` changes only with the status, ``lastHeartbeatTime`` with any field. A repeated call therefore
    changes nothing, unless `heartbeat` is given and the last heartbeat is older than that.
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
