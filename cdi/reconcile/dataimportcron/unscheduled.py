"""Conditions of a DataImportCron that is not scheduled, because no controller polls its source."""

from __future__ import annotations

from typing import Final

from cdi.api.dataimportcron import DataImportCron
from cdi.api.phases import ConditionStatus, ConditionType, Reason
from cdi.reconcile.actions import Event, Plan
from cdi.reconcile.status import ConditionValue, conditions, false

CONTROLLER_REQUIRED: Final = "ControllerRequired"
ON_ONE_MACHINE: Final = (
    "schedules are run by the controller of a cluster, not on a single machine. "
    "Try: run cdi apply with the template from this machine's own scheduler"
)


def reconcile_unscheduled(cron: DataImportCron, now: float, message: str = ON_ONE_MACHINE) -> Plan:
    """Return conditions that say why the schedule is not run, and an event if they are new.

    The results of another controller stay in the status.

    Args:
        cron: The DataImportCron.
        now: Seconds since the epoch.
        message: Why the schedule is not run, and the remedy.

    """
    before = cron.status.to_dict() if cron.status is not None else {}
    old = (cron.status.conditions if cron.status else None) or []
    imported = cron.status is not None and cron.status.last_imported_pvc is not None
    # Nothing checks whether an existing import is still the newest, so the status is Unknown.
    current = (
        ConditionValue(status=ConditionStatus.UNKNOWN, reason=CONTROLLER_REQUIRED, message=message)
        if imported
        else false(Reason.NO_IMPORT, message)
    )
    progressing = false(CONTROLLER_REQUIRED, message)
    wanted = {ConditionType.PROGRESSING: progressing, ConditionType.UP_TO_DATE: current}
    status = {**before, "conditions": conditions(old, wanted, now)}
    if status == before:
        return Plan()
    event = Event(type="Warning", reason=CONTROLLER_REQUIRED, message=message)
    return Plan(status=status, events=(event,))
