"""Options that several commands share, and types of options."""

from __future__ import annotations

import re

import click

from cdi.api.errors import CdiError
from cdi.api.quantity import Quantity
from cdi.cli.show import printable

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_PLAIN = re.compile(r"\d{1,9}(\.\d{1,6})?")
PORT = click.IntRange(0, 65535)


def _configure_log(_: click.Context, __: click.Parameter, level: str) -> None:
    from cdi.logs import LogFormat, configure

    configure(LogFormat.JSON, level)


server_log = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    expose_value=False,
    callback=_configure_log,
)
"""``--log-level`` of the cluster's servers, which log as JSON."""


def names(text: str) -> tuple[str, ...]:
    """Parse names that are separated by commas; each is returned once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def labels(text: str) -> dict[str, str]:
    """Parse labels of the form ``a=b,c=d``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found = {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in parts)}
    if any("=" not in part for part in parts) or "" in found:
        raise click.BadParameter(f"{printable(text)!r} is not a list of label=value")
    return found


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
