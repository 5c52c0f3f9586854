"""Types for click's options."""

from __future__ import annotations

import re

import click

from cdi.api.errors import CdiError
from cdi.api.quantity import Quantity

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_PLAIN = re.compile(r"\d{1,9}(\.\d{1,6})?")


def duration(text: str) -> float:
    """Parse ``90s``, ``10m``, ``1h30m`` or a plain number into seconds."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return float(text)
    if not text or _PART.sub("", text):
        raise click.BadParameter(f"{text[:40]!r} is not a duration such as 90s, 10m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def quantity(text: str) -> str:
    """Validate a Kubernetes quantity of bytes, such as ``10Gi`` or ``500M``, and return its text unchanged."""
    text = text.strip()
    try:
        size = Quantity.parse(text).bytes
    except (CdiError, ValueError) as error:
        raise click.BadParameter(error.what if isinstance(error, CdiError) else str(error)) from error
    if not 0 <= size < 1 << 62:
        raise click.BadParameter(f"{text[:40]!r} is not a valid size")
    return text
