"""Reconciler of the CDI object: what is installed, and its status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdi.api.conditions import set_condition
from cdi.api.installation import CDI
from cdi.api.meta import Condition
from cdi.api.names import ANN_CONFIG_AUTHORITY
from cdi.api.phases import ConditionStatus
from cdi.api.rules.problems import Problem
from cdi.reconcile.actions import PatchObject, Plan
from cdi.reconcile.cdi.config import INVALID, NO_EFFECT, describe_problems, ignored_fields, invalid_event, is_authority


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The state of the installation."""

    version: str
    missing: tuple[str, ...] = ()
    """What does not work yet, or no longer: one sentence each, without a full stop."""


def reconcile_installation(
    cdi: CDI, *, active: bool, installed: Installed, found: tuple[Problem, ...], now: float
) -> Plan:
    """Return the CDI object's phase, versions and conditions, which KubeVirt and consoles read.

    Args:
        cdi: The CDI object.
        active: Whether it is the one in effect (`active_cdi`).
        installed: State of the installation.
        found: The invalid settings (`problems`).
        now: Seconds since the epoch.

    """
    if cdi.metadata.deletion_timestamp is not None:
        return Plan()
    old = cdi.status
    if not active:
        message = "ignored in favor of an older CDI object; delete one of them"
        status = _cdi_status(old, "Error", {"Available": (False, "NotActive", message)}, None, now)
        return Plan(status=None if old is not None and old.to_dict() == status else status)
    ready = not installed.missing
    # After the first deployment the phase stays Deployed: a missing component then means Degraded, not Progressing.
    once = old is not None and old.phase == "Deployed"
    hurt = once and not ready
    waiting = f"{'; '.join(installed.missing)}."
    conditions = {
        "Available": (ready, "DeployCompleted" if ready else "NotReady", "Deployment Completed" if ready else waiting),
        "Progressing": (
            not ready and not once,
            "DeployCompleted" if ready or once else "NotReady",
            "" if ready or once else waiting,
        ),
        "Degraded": (
            bool(found) or hurt,
            "NotReady" if hurt else INVALID if found else "DeployCompleted",
            " ".join(filter(None, (waiting if hurt else "", _status_message(cdi, found)))),
        ),
    }
    status = _cdi_status(old, "Deployed" if ready or once else "Deploying", conditions, installed.version, now)
    actions: tuple[PatchObject, ...] = ()
    if is_authority(cdi) and ANN_CONFIG_AUTHORITY not in (cdi.metadata.annotations or {}):
        actions = (
            PatchObject(
                plural="cdis",
                namespace="",
                name=cdi.metadata.name or "",
                uid=cdi.metadata.uid or "",
                annotations={ANN_CONFIG_AUTHORITY: ""},
            ),
        )
    before = old.to_dict() if old is not None else None
    known = {one.type: one.message or "" for one in (old.conditions if old is not None else None) or []}
    news = bool(found) and not known.get("Degraded", "").endswith(_status_message(cdi, found))
    return Plan(
        actions=actions, status=None if status == before else status, events=invalid_event(found) if news else ()
    )


def _cdi_status(
    old: Any, phase: str, aspects: Mapping[str, tuple[bool, str, str]], version: str | None, now: float
) -> dict[str, Any]:
    moment = datetime.fromtimestamp(now, UTC)
    current: list[Condition] = list((old.conditions if old is not None else None) or [])
    for kind, (true, reason, message) in aspects.items():
        status = ConditionStatus.TRUE if true else ConditionStatus.FALSE
        current = set_condition(current, kind, status=status, reason=reason, message=message, now=moment)
    status_body: dict[str, Any] = {"conditions": [one.to_dict() for one in current], "phase": phase}
    if version is not None:
        status_body |= {"observedVersion": version, "operatorVersion": version, "targetVersion": version}
    return status_body


def _status_message(cdi: CDI, found: tuple[Problem, ...]) -> str:
    idle = "; ".join(f"{field} ({NO_EFFECT[field]})" for field in ignored_fields(cdi))
    return " ".join(
        part for part in (describe_problems(found) if found else "", f"No effect: {idle}." if idle else "") if part
    )
