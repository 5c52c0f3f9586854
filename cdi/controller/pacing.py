"""What is only told, and changes nothing that anybody acts on, is written at most once a second for each volume.

A volume's course gives a new word for every step of the storage and of the node: that the pod has a node, that its
image is there.  Each word written into an unbound claim is looked at by every provisioner of the cluster, which tells
events of its own; most of them are out of date within a few milliseconds.  What is put off is not kept: the next
reconcile finds it missing again, or finds something newer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cdi.api.names import (
    ANN_BOUND_CONDITION,
    ANN_BOUND_CONDITION_MESSAGE,
    ANN_BOUND_CONDITION_REASON,
    ANN_IMPORT_POD,
    ANN_POD_PHASE,
    ANN_POD_READY,
    ANN_POD_RESTARTS,
    ANN_POD_SCHEDULABLE,
    ANN_POPULATOR_PROGRESS,
    ANN_PVC_PRIME,
    ANN_RUNNING_CONDITION,
    ANN_RUNNING_CONDITION_MESSAGE,
    ANN_RUNNING_CONDITION_REASON,
    ANN_UPLOAD_POD,
    ANN_USE_POPULATOR,
)
from cdi.controller.keys import Key
from cdi.kube.resources import CLAIMS, Object
from cdi.reconcile.actions import Action, PatchObject, Plan
from cdi.reconcile.synthesis import ANN_STATUS

PACE = 1.0
"""Seconds between two words about one volume."""
_WORDS = frozenset(
    {
        ANN_BOUND_CONDITION,
        ANN_BOUND_CONDITION_MESSAGE,
        ANN_BOUND_CONDITION_REASON,
        ANN_IMPORT_POD,
        ANN_POD_PHASE,
        ANN_POD_READY,
        ANN_POD_RESTARTS,
        ANN_POD_SCHEDULABLE,
        ANN_POPULATOR_PROGRESS,
        ANN_PVC_PRIME,
        ANN_RUNNING_CONDITION,
        ANN_RUNNING_CONDITION_MESSAGE,
        ANN_RUNNING_CONDITION_REASON,
        ANN_STATUS,
        ANN_UPLOAD_POD,
        ANN_USE_POPULATOR,
    }
)
"""Annotations of a claim that no reconcile rests on."""


class Pacing:
    """Of one controller."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._told: dict[Key, float] = {}
        """In the order of their moments, the oldest first."""

    def paced(self, key: Key, plan: Plan, about: Object) -> Plan:
        """The plan, or as much of it as is due, with the moment of the rest in `requeue_after`."""
        rest = tuple(action for action in plan.actions if not _is_words(action))
        if len(rest) == len(plan.actions) and plan.status is None:
            return plan
        now = self._now()
        left = PACE - (now - self._told.get(key, now - PACE))
        # A clock that was set back keeps nobody waiting.
        if 0 < left <= PACE and not _is_news(plan, about):
            pause = left if plan.requeue_after is None else min(left, plan.requeue_after)
            return replace(plan, actions=rest, status=None, requeue_after=pause)
        self._tell(key, now)
        return plan

    def _tell(self, key: Key, now: float) -> None:
        self._told.pop(key, None)
        self._told[key] = now
        for old, moment in list(self._told.items()):
            if now - moment < PACE:
                break
            del self._told[old]


def _is_words(action: Action) -> bool:
    return (
        isinstance(action, PatchObject)
        and action.plural == CLAIMS.plural
        and not action.version
        and action.owner is None
        and not action.labels
        and action.annotations.keys() <= _WORDS
    )


def _is_news(plan: Plan, about: Object) -> bool:
    """Somebody acts on it: a client waits for a phase, for a condition, or for a server that takes uploads."""
    if plan.events:
        return True
    for action in plan.actions:
        if isinstance(action, PatchObject) and (
            action.annotations.get(ANN_POD_PHASE, "Pending") != "Pending"
            or action.annotations.get(ANN_POD_READY) == "true"
        ):
            return True
    return plan.status is not None and _facts(plan.status) != _facts(about.get("status") or {})


def _facts(status: Mapping[str, Any]) -> tuple[object, ...]:
    conditions = {one.get("type"): one.get("status") for one in status.get("conditions") or ()}
    return status.get("phase"), status.get("claimName"), conditions
