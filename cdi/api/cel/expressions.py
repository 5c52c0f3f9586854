"""Validation rule and helpers to build its expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
RULES = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Expression that must be true, and the message if it is false."""

    rule: str
    message: str
    field: str = ""
    """Path of the member to report, if it is not the value itself, such as ``.storage``."""
    reason: str = ""
    """Reason such as FieldValueRequired; FieldValueInvalid if empty."""
    message_expression: str = ""
    """Expression for the message, which replaces `message` unless it fails."""

    def to_dict(self) -> dict[str, str]:
        """Return the rule as in a schema."""
        optional = {"messageExpression": self.message_expression, "fieldPath": self.field, "reason": self.reason}
        return {"rule": self.rule, "message": self.message} | {name: text for name, text in optional.items() if text}


REQUIRED = "FieldValueRequired"
LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
WARM = "has(self.source) && (has(self.source.imageio) || has(self.source.vddk))"
"""Expression for a volume that is filled in stages (warm import)."""


def size_of(claim: str) -> str:
    return f"{claim}.resources.requests['storage']"


def has_size(claim: str) -> str:
    return f"has({claim}.resources) && has({claim}.resources.requests) && 'storage' in {claim}.resources.requests"


def amount(expression: str) -> str:
    """Return an expression that converts a quantity, as number or string, to a comparable value."""
    return f"quantity(string({expression}))"


def one_of(values: tuple[str, ...]) -> str:
    return f"self in [{', '.join(repr(value) for value in ('', *values))}]"


def words(values: tuple[str, ...]) -> str:
    return ", ".join(f'"{value}"' for value in sorted(values))
