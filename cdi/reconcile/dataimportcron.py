"""A DataImportCron where no controller polls: it says so, instead of looking alive."""

from __future__ import annotations

from cdi.api.dataimportcron import DataImportCron
from cdi.api.phases import ConditionType, Reason
from cdi.reconcile.actions import Plan
from cdi.reconcile.status import conditions, no

CONTROLLER_REQUIRED = "ControllerRequired"


def reconcile_unscheduled(cron: DataImportCron, now: float) -> Plan:
    """Its conditions on one machine."""
    message = (
        "schedules are run by the controller of a cluster, not on a single machine. "
        "Try: run cdi apply with the template from this machine's own scheduler"
    )
    old = (cron.status.conditions if cron.status else None) or []
    status = {
        "conditions": conditions(
            old,
            {
                ConditionType.PROGRESSING: no(CONTROLLER_REQUIRED, message),
                ConditionType.UP_TO_DATE: no(Reason.NO_IMPORT, message),
            },
            now,
        )
    }
    return Plan(status=None if cron.status is not None and cron.status.to_dict() == status else status)
