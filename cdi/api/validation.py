"""Validation of objects without access to other objects.

The checks include those of the webhooks of KubeVirt's CDI, with their messages where programs rely on them, and further
ones for mistakes that would otherwise be noticed only during the import. All problems of an object are reported
together.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from cdi.api.errors import InvalidManifest
from cdi.api.golden import check_golden_change
from cdi.api.json_document import plain
from cdi.api.kinds import Resource, kind_of
from cdi.api.meta import KubeObject
from cdi.api.policy import COSIGN_KEYS, DISK, check_policy_change, check_signed_source
from cdi.api.rules.metadata import check_metadata
from cdi.api.rules.problems import Problem, Problems, truncate
from cdi.api.rules.shape import shape_problems
from cdi.api.rules.update import check_update

MAX_PROBLEMS = 20
"""Maximum number of problems in a message; the others are counted."""

_IMPORTED = ("DataVolume", "PersistentVolumeClaim", "DataImportCron")
"""Kinds whose annotations configure an import."""


def parse(document: Mapping[str, Any]) -> KubeObject:
    """Return the model of an object that a cluster or store has already admitted, checking only its shape.

    Raises:
        InvalidManifest: Fields are missing or have a wrong type; the message names all of them.
    """
    body = plain(document)
    return _model(body, _kind(body))


def parse_manifest(document: Mapping[str, Any]) -> KubeObject:
    """Return the model of a user's manifest after full validation.

    Unknown fields are permitted here; `cdi.api.model.unknown_fields` lists them.

    Raises:
        InvalidManifest: The manifest is invalid; the message lists all problems.
    """
    body = plain(document)
    obj = _model(body, _kind(body))
    raise_problems(validate(obj), where=describe(obj))
    return obj


def examine(
    document: Mapping[str, Any], old: Mapping[str, Any] | None = None
) -> tuple[KubeObject | None, tuple[Problem, ...]]:
    """Return the model and all problems of an object to be created or to replace `old`.

    The model is None if the object does not have the shape of its kind.
    """
    try:
        body = plain(document)
        kind = _kind(body)
    except InvalidManifest as error:
        return None, (Problem(field=error.where or "", message=error.what),)
    new = _read(body, kind)
    if not isinstance(new, KubeObject):
        return None, new
    try:
        before = parse(old) if old is not None else None
    except InvalidManifest:
        before = None  # an object stored under older rules may be unreadable; the new object is validated alone
    return new, validate(new) if before is None else validate_update(before, new)


def validate(obj: KubeObject) -> tuple[Problem, ...]:
    """Return all problems of an object to be created."""
    kind = kind_of(obj.group_version, obj.kind_name())
    # Imported on first use, as the models are.
    module, _, function = kind.rule.partition(".")
    rule: Callable[[KubeObject], Problems] = getattr(importlib.import_module(f"cdi.api.rules.{module}"), function)
    return (*check_metadata(obj.metadata, kind), *rule(obj))


def validate_update(old: KubeObject, new: KubeObject) -> tuple[Problem, ...]:
    """Return all problems of replacing `old` by `new`.

    An update that keeps the spec is always permitted, even if rules have become stricter since the object was created,
    so that finalizers and annotations can be changed. Annotations that configure an import are checked if they change.
    """
    problems, changed = check_update(old, new)
    if problems:
        return problems
    if changed:
        return validate(new)
    if new.kind_name() not in _IMPORTED:
        return ()
    before, after = old.metadata.annotations, new.metadata.annotations
    found = (*check_policy_change(before, after), *_check_signed_source_change(old, new))
    # The model of a DataImportCron is not imported for this: spec of other kinds has no such member.
    managed = getattr(getattr(new, "spec", None), "managed_data_source", None)
    return found if managed is None else (*found, *check_golden_change(before, after, managed=managed))


def _check_signed_source_change(old: KubeObject, new: KubeObject) -> Iterator[Problem]:
    before, after = old.metadata.annotations or {}, new.metadata.annotations or {}
    if all(before.get(name) == after.get(name) for name in (COSIGN_KEYS, DISK)):
        return
    # As above, the models are not imported: a DataVolume has a source, a DataImportCron a template with one.
    spec = getattr(new, "spec", None)
    template = getattr(spec, "template", None)
    if template is not None:
        spec = template.spec
    if spec is not None and hasattr(spec, "source"):
        yield from check_signed_source(after, spec.source)


def raise_problems(problems: Iterable[Problem], *, where: str | None) -> None:
    """Raise `InvalidManifest` with all problems in one message; return if there is none."""
    found = list(problems)
    if not found:
        return
    lines = [str(problem) for problem in found[:MAX_PROBLEMS]]
    if len(found) > MAX_PROBLEMS:
        lines.append(f"and {len(found) - MAX_PROBLEMS} more")
    raise InvalidManifest("; ".join(lines), where=where)


def describe(obj: KubeObject) -> str:
    """Return kind, namespace and name of an object for messages, such as ``DataVolume default/fedora``."""
    meta = obj.metadata
    name = truncate(meta.name or f"{meta.generate_name or ''}*")
    return f"{obj.kind_name()} {truncate(meta.namespace)}/{name}" if meta.namespace else f"{obj.kind_name()} {name}"


def _kind(body: dict[str, Any]) -> Resource:
    words = []
    for field in ("apiVersion", "kind"):
        value = body.get(field)
        if not isinstance(value, str) or not value:
            raise InvalidManifest(f"{field}: Required value: a manifest says its {field}")
        words.append(value)
    return kind_of(*words)


def _model(body: dict[str, Any], kind: Resource) -> KubeObject:
    read = _read(body, kind)
    if isinstance(read, KubeObject):
        return read
    raise_problems(read, where=_where(body, kind))
    raise AssertionError("a validation error without a problem")


def _read(body: dict[str, Any], kind: Resource) -> KubeObject | tuple[Problem, ...]:
    try:
        return kind.model.model_validate(body, by_alias=True, by_name=False)
    except ValidationError as error:
        return shape_problems(error, hides_values=kind.kind == "Secret")


def _where(body: dict[str, Any], kind: Resource) -> str:
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{kind.kind} {truncate(name)}" if isinstance(name, str) else kind.kind
