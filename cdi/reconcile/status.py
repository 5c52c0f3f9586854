"""Rendering of a DataVolume's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdi.api.conditions import set_condition
from cdi.api.datavolume import DataVolume
from cdi.api.meta import Condition
from cdi.api.phases import PROGRESS_UNKNOWN, ConditionStatus, ConditionType, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionValue:
    """The intended value of one condition."""

    status: ConditionStatus
    reason: str = ""
    message: str = ""


def true(reason: str = "", message: str = "") -> ConditionValue:
    return ConditionValue(status=ConditionStatus.TRUE, reason=reason, message=message)


def false(reason: str = "", message: str = "") -> ConditionValue:
    return ConditionValue(status=ConditionStatus.FALSE, reason=reason, message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataVolumeState:
    """The intended state of a DataVolume."""

    phase: Phase
    bound: ConditionValue
    running: ConditionValue
    ready: ConditionValue
    claim_name: str | None = None
    progress: str = PROGRESS_UNKNOWN
    restarts: int = 0


def render(dv: DataVolume, state: DataVolumeState, now: float) -> dict[str, Any]:
    """Return the whole status; timestamps change only if something else does."""
    old = dv.status.conditions if dv.status and dv.status.conditions else []
    aspects = {
        ConditionType.READY: state.ready,
        ConditionType.BOUND: state.bound,
        ConditionType.RUNNING: state.running,
    }
    status: dict[str, Any] = {
        "conditions": conditions(old, aspects, now),
        "phase": state.phase.value,
        "progress": state.progress,
        "restartCount": state.restarts,
    }
    if state.claim_name:
        status["claimName"] = state.claim_name
    return status


def conditions(
    old: Sequence[Condition], aspects: Mapping[ConditionType, ConditionValue], now: float
) -> list[dict[str, Any]]:
    """Return all of `old` with `aspects` set, as API objects; timestamps change only if something else does."""
    moment = datetime.fromtimestamp(now, UTC)
    current = list(old)
    for kind, aspect in aspects.items():
        current = set_condition(
            current, kind, status=aspect.status, reason=aspect.reason, message=aspect.message, now=moment
        )
    return [condition.to_dict() for condition in current]
