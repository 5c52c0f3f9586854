"""One rule, and the pieces that expressions are put together from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
RULES = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One expression that must be true, and what is wrong where it is not."""

    rule: str
    message: str
    field: str = ""
    """The member that the problem is shown at, where it is not the value itself: ``.storage``."""
    reason: str = ""
    """FieldValueRequired or the like; FieldValueInvalid where nothing is said."""

    def to_dict(self) -> dict[str, str]:
        """As it stands in a schema."""
        made = {"rule": self.rule, "message": self.message}
        return (
            made | ({"fieldPath": self.field} if self.field else {}) | ({"reason": self.reason} if self.reason else {})
        )


REQUIRED = "FieldValueRequired"
LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
WARM = "has(self.source) && (has(self.source.imageio) || has(self.source.vddk))"
"""A volume that is filled in stages."""


def size_of(claim: str) -> str:
    return f"{claim}.resources.requests['storage']"


def has_size(claim: str) -> str:
    return f"has({claim}.resources) && has({claim}.resources.requests) && 'storage' in {claim}.resources.requests"


def amount(expression: str) -> str:
    """A quantity is a number or a text; either becomes one that can be compared."""
    return f"quantity(string({expression}))"


def one_of(values: tuple[str, ...]) -> str:
    return f"self in [{', '.join(repr(value) for value in ('', *values))}]"


def words(values: tuple[str, ...]) -> str:
    return ", ".join(f'"{value}"' for value in sorted(values))
