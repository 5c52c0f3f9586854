"""Rate limit for informational status writes.

Such writes are limited to one per second for each volume and five per second overall.

Progress messages and mirrored annotations change with every scheduling and storage event. Each write to an unbound PVC
makes every provisioner in the cluster handle it and emit events of its own; most of the written messages are outdated
within a few milliseconds. A write that is held back is dropped, not queued: the next reconcile computes it again from
the current state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cdi.api import names
from cdi.api.annotations import IMPORT_STATUS
from cdi.api.kinds import CLAIMS, Object
from cdi.api.phases import TERMINAL_PHASES
from cdi.controller.request import Request
from cdi.reconcile.actions import Action, CreateObject, PatchObject, Plan

MIN_INTERVAL = 1.0
"""Minimum interval in seconds between informational writes for one volume."""
RATE = 5.0
"""Informational writes per second for all volumes together, on average."""
MAX_DELAY = 15.0
"""Maximum delay of an informational write in seconds."""
_MANY = 100
STATUS_ANNOTATIONS = frozenset(
    {
        names.ANN_BOUND_CONDITION,
        names.ANN_BOUND_CONDITION_MESSAGE,
        names.ANN_BOUND_CONDITION_REASON,
        names.ANN_CLONE_ERROR,
        names.ANN_CLONE_FALLBACK_REASON,
        names.ANN_CLONE_OF,
        names.ANN_CLONE_PHASE,
        names.ANN_CLONE_TYPE,
        names.ANN_IMPORT_POD,
        names.ANN_POD_PHASE,
        names.ANN_POD_READY,
        names.ANN_POD_RESTARTS,
        names.ANN_POD_SCHEDULABLE,
        names.ANN_POPULATOR_PROGRESS,
        names.ANN_PVC_PRIME,
        names.ANN_RUNNING_CONDITION,
        names.ANN_RUNNING_CONDITION_MESSAGE,
        names.ANN_RUNNING_CONDITION_REASON,
        IMPORT_STATUS.key,
        names.ANN_UPLOAD_POD,
        names.ANN_USE_POPULATOR,
    }
)
"""Annotations of a PVC that no reconcile depends on."""


class StatusThrottle:
    """Rate limiter of informational writes."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._free = 0.0
        """When the next informational write for any volume is due."""
        self._due: dict[Request, float] = {}
        """When the next informational write for each volume is due."""

    def filter(self, key: Request, plan: Plan, involved_object: Object) -> Plan:
        """Return the plan, or what of it is due, with the time until the rest is due in `requeue_after`."""
        rest = tuple(action for action in plan.actions if not _is_status_patch(action))
        if len(rest) == len(plan.actions) and plan.status is None:
            return plan
        now = self._now()
        # If the clock was set back, the recorded times are too far in the future and are ignored.
        if not now < self._due.get(key, now) <= now + MAX_DELAY:
            self._record(key, now)
            return plan
        status = None
        if _is_significant(plan, involved_object):
            self._record(key, now)
            if _is_for_all(plan):
                return plan
            # The DataVolume's status has the new facts; the same facts in its PVCs' annotations can wait.
            rest = tuple(one for one in plan.actions if not _is_status_patch(one) or _is_told_of_a_pod(one))
            if len(rest) == len(plan.actions):
                return plan
            status = plan.status
        left = self._due[key] - now
        pause = left if plan.requeue_after is None else min(left, plan.requeue_after)
        return replace(plan, actions=rest, status=status, requeue_after=pause)

    def _record(self, key: Request, now: float) -> None:
        self._free = min(max(self._free, now) + 1 / RATE, now + MAX_DELAY)
        self._due[key] = max(now + MIN_INTERVAL, self._free)
        if len(self._due) > _MANY:
            self._due = {key: moment for key, moment in self._due.items() if now < moment <= now + MAX_DELAY}


def _is_status_patch(action: Action) -> bool:
    return (
        isinstance(action, PatchObject)
        and action.plural == CLAIMS.plural
        and not action.version
        and action.owner is None
        and not action.labels
        and action.annotations.keys() <= STATUS_ANNOTATIONS
    )


def _is_significant(plan: Plan, involved_object: Object) -> bool:
    """Return whether the plan has a change that a client may act on.

    That is a phase, a condition, or an upload server that is ready.
    """
    # Normal events of a plan with creations report these. They are emitted now even if the status is held back, so they
    # are no reason to write it.
    made = any(isinstance(action, CreateObject) for action in plan.actions)
    if any(event.type == "Warning" or not made for event in plan.events):
        return True
    if any(_is_told_of_a_pod(action) for action in plan.actions):
        return True
    return plan.status is not None and _facts(plan.status) != _facts(involved_object.get("status") or {})


def _is_for_all(plan: Plan) -> bool:
    """Return whether the plan must be applied completely.

    That holds for an end, for a warning, and for a plan without a status, which only changes PVCs.
    """
    return (
        plan.status is None
        or plan.status.get("phase") in TERMINAL_PHASES
        or any(event.type == "Warning" for event in plan.events)
    )


def _is_told_of_a_pod(action: Action) -> bool:
    return isinstance(action, PatchObject) and (
        action.annotations.get(names.ANN_POD_PHASE, "Pending") != "Pending"
        or action.annotations.get(names.ANN_POD_READY) == "true"
    )


def _facts(status: Mapping[str, Any]) -> tuple[object, ...]:
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    said = {kind: one.get("status") for kind, one in conditions.items()}
    return status.get("phase"), status.get("claimName"), said, conditions.get("Running", {}).get("reason")
