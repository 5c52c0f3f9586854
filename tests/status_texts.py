"""Comparison of a DataVolume's status with the rows of `cdi.reconcile.datavolume.status_cases`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cdi.reconcile.datavolume.status import ConditionValue
from cdi.reconcile.datavolume.status_cases import CASES, Case
from cdi.reconcile.datavolume.status_table import Course


def fits(template: str, text: str) -> bool:
    """Return whether a text is a template's with something in place of each word in braces."""
    parts = re.split(r"\{\w+\}", template)
    return re.fullmatch(".*".join(map(re.escape, parts)), text, re.DOTALL) is not None


def has_conditions(status: Mapping[str, Any], case: Case) -> bool:
    """Return whether a status has the phase and the conditions of a row."""
    found = {one["type"]: one for one in status.get("conditions", [])}

    def same(kind: str, wanted: ConditionValue) -> bool:
        condition = found.get(kind, {})
        texts = (condition.get("reason") or "", condition.get("message") or "")
        return condition.get("status") == wanted.status and all(map(fits, (wanted.reason, wanted.message), texts))

    return (
        status.get("phase") == case.phase
        and any(same("Bound", one) for one in case.bound)
        and same("Running", case.running)
        and same("Ready", case.ready)
    )


def is_documented(course: Course, status: Mapping[str, Any], cases: Iterable[Case] = CASES) -> bool:
    """Return whether any row of a course has this phase and these conditions."""
    return any(course in case.courses and has_conditions(status, case) for case in cases)
