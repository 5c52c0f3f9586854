"""The reason and message that a DataVolume's status has beyond the conditions that other programs compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdi.api.phases import ConditionType


def status_detail(body: Mapping[str, Any]) -> tuple[str, str]:
    """Return reason and message of a stored object's ``status.detail``.

    Other kinds, and DataVolumes that an earlier version or another importer has written, have them in their Ready
    condition.
    """
    status = body.get("status")
    if not isinstance(status, Mapping):
        return "", ""
    detail = status.get("detail")
    if isinstance(detail, Mapping):
        return _pair(detail)
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else []:
        if isinstance(condition, Mapping) and condition.get("type") == ConditionType.READY:
            return _pair(condition)
    return "", ""


def _pair(texts: Mapping[str, Any]) -> tuple[str, str]:
    return str(texts.get("reason") or ""), str(texts.get("message") or "")
