"""What is only told, and changes nothing that anybody acts on, may wait.

At most one word a second is written about each volume, and in the long run five a second about all of them.

A volume's course gives a new word for every step of the storage and of the node: that the pod has a node, that its
image is there.  Each word written into an unbound claim is looked at by every provisioner of the cluster, which tells
events of its own; most of them are out of date within a few milliseconds.  What is put off is not kept: the next
reconcile finds it missing again, or finds something newer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cdi.api import names
from cdi.controller.keys import Key
from cdi.controller.waiting import FINAL
from cdi.kube.resources import CLAIMS, Object
from cdi.reconcile.actions import Action, CreateObject, PatchObject, Plan
from cdi.reconcile.synthesis import ANN_STATUS

PACE = 1.0
"""Seconds between two words about one volume, at least."""
RATE = 5.0
"""Words a second about all volumes, in the long run."""
LONGEST = 15.0
"""Seconds that a word waits, at most."""
_MANY = 100
_WORDS = frozenset(
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
        ANN_STATUS,
        names.ANN_UPLOAD_POD,
        names.ANN_USE_POPULATOR,
    }
)
"""Annotations of a claim that no reconcile rests on."""


class Pacing:
    """Of one controller."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._free = 0.0
        """When the next word may be told, whatever it is about."""
        self._due: dict[Key, float] = {}
        """When the next word may be told about a volume."""

    def paced(self, key: Key, plan: Plan, about: Object) -> Plan:
        """The plan, or as much of it as is due, with the moment of the rest in `requeue_after`."""
        rest = tuple(action for action in plan.actions if not _is_words(action))
        if len(rest) == len(plan.actions) and plan.status is None:
            return plan
        now = self._now()
        # A clock that was set back keeps nobody waiting.
        if not now < self._due.get(key, now) <= now + LONGEST:
            self._told(key, now)
            return plan
        status = None
        if _is_news(plan, about):
            self._told(key, now)
            if _is_for_all(plan):
                return plan
            # A DataVolume's status says it; its claims say later what nobody waits for there.
            rest = tuple(one for one in plan.actions if not _is_words(one) or _is_told_of_a_pod(one))
            if len(rest) == len(plan.actions):
                return plan
            status = plan.status
        left = self._due[key] - now
        pause = left if plan.requeue_after is None else min(left, plan.requeue_after)
        return replace(plan, actions=rest, status=status, requeue_after=pause)

    def _told(self, key: Key, now: float) -> None:
        self._free = min(max(self._free, now) + 1 / RATE, now + LONGEST)
        self._due[key] = max(now + PACE, self._free)
        if len(self._due) > _MANY:
            self._due = {key: moment for key, moment in self._due.items() if now < moment <= now + LONGEST}


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
    # That something is made is told as it is made, and is not told again when its status comes later.
    made = any(isinstance(action, CreateObject) for action in plan.actions)
    if any(event.type == "Warning" or not made for event in plan.events):
        return True
    if any(_is_told_of_a_pod(action) for action in plan.actions):
        return True
    return plan.status is not None and _facts(plan.status) != _facts(about.get("status") or {})


def _is_for_all(plan: Plan) -> bool:
    """It is told wherever it is told at all: an end, trouble, or what is only told of a claim."""
    return (
        plan.status is None
        or plan.status.get("phase") in FINAL
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
