"""Insertion of the rules into the schema of a definition."""

from __future__ import annotations

from cdi.api.cel.expressions import RULES, Schema
from cdi.api.cel.fields import FIELD_RULES
from cdi.api.cel.models import MISSING_SPEC, MODEL_RULES


def apply_rules(model: str, schema: Schema) -> Schema:
    """Return an object's schema with the rules and limits of its model."""
    fields = FIELD_RULES.get(model, {})
    rules = [rule.to_dict() for rule in MODEL_RULES.get(model, ())]
    made = dict(schema)
    if fields:
        made["properties"] = {
            name: _limited(part, fields[name]) if name in fields else part
            for name, part in schema["properties"].items()
        }
    if rules:
        made[RULES] = [*schema.get(RULES, []), *rules]
    return made


def report_missing_spec(kind: str, schema: Schema) -> Schema:
    """Return the schema of a kind's objects, in which a rule of `MISSING_SPEC` reports a missing spec if it has one."""
    if kind not in MISSING_SPEC:
        return schema
    made = dict(schema)
    required = [name for name in made.pop("required", ()) if name != "spec"]
    rules = [*schema.get(RULES, []), MISSING_SPEC[kind].to_dict()]
    return made | ({"required": required} if required else {}) | {RULES: rules}


def _limited(schema: Schema, limits: Schema) -> Schema:
    if "items" in limits:
        return schema | {"items": schema["items"] | limits["items"]}
    return schema | limits
