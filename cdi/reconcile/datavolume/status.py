"""Rendering of a DataVolume's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdi.api.conditions import MAX_MESSAGE, set_condition
from cdi.api.datavolume import DataVolume
from cdi.api.meta import Condition
from cdi.api.phases import PROGRESS_UNKNOWN, ConditionStatus, ConditionType, EventReason, Phase, Reason


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
    """Our own account of the state: error code or reason, with cause and remedy.

    It is stored in ``status.detail``. The published condition has less, see `ready_condition`.
    """
    claim_name: str | None = None
    progress: str = PROGRESS_UNKNOWN
    restarts: int = 0


_WITHOUT_CLAIM = frozenset(
    {
        EventReason.CLONE_SOURCE_IN_USE,
        EventReason.CLONE_VALIDATION_FAILED,
        EventReason.CLONE_WITHOUT_SOURCE,
        Reason.ERR_CLAIM_NOT_VALID,
        Reason.ERR_EXCEEDED_QUOTA,
    }
)
"""Reasons for which no PVC could be created; Bound and Ready both have them."""


def ready_condition(state: DataVolumeState) -> ConditionValue:
    """Return the Ready condition as KubeVirt's CDI sets it: without reason and message, with two exceptions.

    While a worker runs the reason is ``TransferRunning``. If no PVC can be created, reason and message are those of
    Bound.
    """
    if state.phase is Phase.SUCCEEDED:
        return true()
    if state.phase is Phase.UNKNOWN:
        return ConditionValue(status=ConditionStatus.UNKNOWN)
    if state.running.status is ConditionStatus.TRUE:
        return false(Reason.TRANSFER_RUNNING)
    if state.claim_name is None and state.bound.reason in _WITHOUT_CLAIM:
        return false(state.bound.reason, state.bound.message)
    return false()


def render(dv: DataVolume, state: DataVolumeState, now: float) -> dict[str, Any]:
    """Return the whole status; timestamps change only if something else does."""
    old = dv.status.conditions if dv.status and dv.status.conditions else []
    aspects = {
        ConditionType.READY: ready_condition(state),
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
    detail = {"reason": state.ready.reason, "message": state.ready.message[:MAX_MESSAGE]}
    if any(detail.values()):
        status["detail"] = {name: text for name, text in detail.items() if text}
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
