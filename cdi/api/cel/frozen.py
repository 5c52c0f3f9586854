"""Validation rules for immutable objects."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.cel.expressions import RULES, WARM, Rule, Schema, amount, has_size, size_of

_ESCAPED = {"namespace"}
"""Field names that are reserved words of the language."""
_NOT_COMPARED = {"apiVersion", "kind", "metadata", "status"}
_BY_VALUE = "resources"
"""Compared by content, because Go clients write empty fields and change the notation of sizes."""
_BY_STAGE = {"checkpoints", "finalCheckpoint"}
_ABSENT_IS_FALSE = {"finalCheckpoint"}


def freeze(schema: Schema, message: str) -> Schema:
    """Return an object's schema with rules that reject changes at any depth.

    Go clients may write a field back as null, empty or in another notation. As in `cdi.api.rules.update`, equivalent
    values count as equal. The checkpoints of a warm import may still change.
    """
    made = dict(schema)
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    made["properties"] = {
        name: freeze(part, message) if "properties" in part and name not in {*_NOT_COMPARED, _BY_VALUE} else part
        for name, part in properties.items()
    }
    staged = properties.keys() >= _BY_STAGE
    held = [
        expression
        for name, part in properties.items()
        if name not in _NOT_COMPARED and not (staged and name in _BY_STAGE)
        for expression in _same(name, part, required=name in required)
    ]
    if staged:
        stages = " && ".join(
            f"({expression})" for name in sorted(_BY_STAGE) for expression in _same(name, properties[name])
        )
        held.append(f"({WARM} && has(self.checkpoints) && size(self.checkpoints) > 0) || ({stages})")
    if held:
        rule = Rule(rule=" && ".join(f"({each})" for each in held), message=message)
        made[RULES] = [*schema.get(RULES, []), rule.to_dict()]
    return made


def _same(name: str, schema: Schema, *, required: bool = False) -> Iterator[str]:
    field = f"__{name}__" if name in _ESCAPED else name
    new, old = f"self.{field}", f"oldSelf.{field}"
    match schema.get("type"):
        case "object" if name == _BY_VALUE:
            sized = {side: has_size(side) for side in ("self", "oldSelf")}
            yield f"({sized['self']}) == ({sized['oldSelf']})"
            yield (
                f"!({sized['self']}) || !({sized['oldSelf']}) || "
                f"{amount(size_of('self'))}.compareTo({amount(size_of('oldSelf'))}) == 0"
            )
        case "object" if "properties" in schema or "additionalProperties" not in schema:
            if not required:
                yield f"has({new}) == has({old})"
        case "string" if required:
            yield f"{new} == {old}"
        case "string":
            yield _defaulted(new, old, "''")
        case "array":
            yield _defaulted(new, old, "[]")
        case "object":
            yield _defaulted(new, old, "{}")
        case "boolean" if name in _ABSENT_IS_FALSE:
            yield _defaulted(new, old, "false")
        case _:
            yield f"has({new}) == has({old}) && (!has({new}) || !has({old}) || {new} == {old})"


def _defaulted(new: str, old: str, empty: str) -> str:
    return f"(has({new}) ? {new} : {empty}) == (has({old}) ? {old} : {empty})"
