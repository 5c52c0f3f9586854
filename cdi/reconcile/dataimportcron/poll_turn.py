"""Turns of polls: how many run at once, and which DataImportCrons wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cdi.api.names import ANN_CRON_NEXT_TIME, ANN_CRON_POLL
from cdi.api.schedule import Schedule
from cdi.api.timestamps import parse_timestamp
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.poll_record import PollRecord
from cdi.reconcile.dataimportcron.slots import may_start

MAX_POLLS: Final = 8
"""Maximum number of polls that run at once, for all DataImportCrons together."""


def has_turn(context: CronContext) -> bool:
    """Return whether a due poll may start now."""
    objects, now = context.objects, context.now
    return may_start(context.namespace, objects.running_polls(), lambda: objects.waiting_polls(now), MAX_POLLS, now)


def is_waiting(spec: Mapping[str, Any], annotations: Mapping[str, str], now: float) -> bool:
    """Return whether a poll is due that needs a Job or a pod, and that nothing but its turn is known to prevent."""
    schedule = spec.get("schedule")
    source = ((spec.get("template") or {}).get("spec") or {}).get("source") or {}
    if not schedule or "pvc" in source or (source.get("registry") or {}).get("imageStream"):
        return False
    moment = parse_timestamp(annotations.get(ANN_CRON_NEXT_TIME))
    if moment is not None and moment.timestamp() > now:
        return False
    record = PollRecord.read(annotations.get(ANN_CRON_POLL))
    if record.failure is not None and record.failures == 0:
        return False  # it waits for a Secret or ConfigMap
    try:
        Schedule.parse(schedule)
    except ValueError:
        return False
    return True
