"""Validation of changes to existing objects."""

from __future__ import annotations

from typing import Any

from cdi.api.datavolume import DataVolumeSpec
from cdi.api.kinds import kind_of
from cdi.api.meta import KubeObject
from cdi.api.model import Model, wire_name
from cdi.api.rules.problems import Cause, Problem
from cdi.api.rules.sources import WARM_SOURCES

_STAGES = {"checkpoints", "finalCheckpoint"}


def check_update(old: KubeObject, new: KubeObject) -> tuple[tuple[Problem, ...], bool]:
    """Return the problems of replacing `old` by `new`, and whether any field that users may set has changed."""
    if type(old) is not type(new):
        problem = Problem(field="kind", message=f"a {old.kind_name()} cannot become a {new.kind_name()}")
        return (problem,), True
    moved = tuple(
        Problem(field=f"metadata.{field}", message="field is immutable", cause=Cause.DUPLICATE)
        for field in ("name", "namespace")
        if (getattr(old.metadata, field) or "") != (getattr(new.metadata, field) or "")
    )
    before, after = _content(old), _content(new)
    if before == after:
        return moved, False
    message = kind_of(new.group_version, new.kind_name()).frozen
    if not message or _next_stage(new, before, after):
        return moved, True
    return (*moved, Problem(field="spec", message=message, cause=Cause.DUPLICATE)), True


def _next_stage(new: KubeObject, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Return whether only the checkpoints of a warm import change."""
    spec: DataVolumeSpec | None = getattr(new, "spec", None)
    source = getattr(spec, "source", None)
    if source is None or not getattr(spec, "checkpoints", None):
        return False
    if not any(kind in WARM_SOURCES for kind, _ in source.given()):
        return False
    return _without(before, _STAGES) == _without(after, _STAGES)


def _content(obj: KubeObject) -> dict[str, Any]:
    """Return the fields that users set, normalized so that equivalent values are equal."""
    return _meaning(obj, skip={"apiVersion", "kind", "metadata", "status"})


def _without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    if isinstance(values.get("spec"), dict):
        return values | {"spec": _without(values["spec"], names)}
    return {name: value for name, value in values.items() if name not in names}


def _meaning(model: Model, skip: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """Return the normalized fields of a model: absent, null and empty are the same, amounts are compared by value.

    An empty member such as ``blank: {}`` is kept, because it selects a source.
    """
    found: dict[str, Any] = {}
    for attribute in type(model).model_fields:
        name = wire_name(attribute)
        value = getattr(model, attribute)
        if name in skip or value is None or value in ("", [], {}):
            continue
        if name == "finalCheckpoint" and value is False:
            continue
        meaning = _value(value)
        if meaning == {} and name in ("resources", "infra", "workload", "customizeComponents", "status"):
            continue
        found[name] = meaning
    return found


def _value(value: Any) -> Any:
    match value:
        case Model():
            return _meaning(value)
        case list():
            return [_value(item) for item in value]
        case dict():
            return {key: _value(item) for key, item in value.items()}
        case _:
            return value
