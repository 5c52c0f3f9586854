"""A DataImportCron where no controller polls: it says so, instead of looking alive."""

from __future__ import annotations

from cdi.api.dataimportcron import DataImportCron
from cdi.api.phases import ConditionType, Reason
from cdi.reconcile.actions import Plan
from cdi.reconcile.status import conditions, no

CONTROLLER_REQUIRED = "ControllerRequired"
ON_ONE_MACHINE = (
    "schedules are run by the controller of a cluster, not on a single machine. "
    "Try: run cdi apply with the template from this machine's own scheduler"
)
IN_A_CLUSTER = (
    "this build of the controller runs no schedules yet. "
    "Try: create the template's DataVolume from a scheduler of your own, such as a CronJob that runs cdi import"
)


def reconcile_unscheduled(cron: DataImportCron, now: float, message: str = ON_ONE_MACHINE) -> Plan:
    """Its conditions; `message` says why it is not run, and what to do."""
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
