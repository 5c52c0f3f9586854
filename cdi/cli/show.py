"""Formatting of tables, documents, durations and colours."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from cdi.api.printable import escaped
from cdi.image.sizes import format_size

COLOURS = {"red": 31, "green": 32, "yellow": 33, "cyan": 36, "bold": 1, "dim": 2}


def paint(text: str, colour: str, *, err: bool = False) -> str:
    """Colour `text` if the stream is a terminal and NO_COLOR (no-color.org) is not set."""
    stream = sys.stderr if err else sys.stdout
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Escape control characters: messages may quote a server or an image, which must not control the terminal."""
    return escaped(text, keep="\n")


def document(body: Any, form: str) -> str:
    """Format `body` as ``json`` or ``yaml``."""
    if form == "json":
        return json.dumps(body, indent=2, ensure_ascii=False)
    import yaml

    return str(yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=1 << 16)).rstrip("\n")


def one_or_list(items: Sequence[Any]) -> Any:
    """Return what kubectl prints: a single object alone, several as a List."""
    return items[0] if len(items) == 1 else {"apiVersion": "v1", "kind": "List", "items": list(items)}


def width(text: str) -> int:
    """Return the number of terminal columns that `text` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in kubectl's format: three spaces between columns, no trailing spaces."""
    cells = [list(headers), *([printable(cell).replace("\n", " ") or "" for cell in row] for row in rows)]
    widths = [max(width(row[i]) for row in cells) for i in range(len(headers))]
    return ["   ".join(cell + " " * (widths[i] - width(cell)) for i, cell in enumerate(row)).rstrip() for row in cells]


def echo_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def age(moment: str | None, now: datetime | None = None) -> str:
    """Return the age of an RFC 3339 timestamp in kubectl's format."""
    passed = _seconds_since(moment, now)
    return passed if isinstance(passed, str) else duration(max(0.0, passed))


def until(moment: str | None, now: datetime | None = None) -> str:
    """Return how long it is until an RFC 3339 timestamp; ``now`` if it has passed."""
    passed = _seconds_since(moment, now)
    return passed if isinstance(passed, str) else duration(-passed) if passed < 0 else "now"


def _seconds_since(moment: str | None, now: datetime | None) -> float | str:
    """Return the seconds that have passed since a timestamp, or the text for one that is missing or invalid."""
    if not moment:
        return ""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return "<invalid>"
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return ((now or datetime.now(UTC)) - then).total_seconds()


def duration(seconds: float) -> str:
    """Format seconds in kubectl's way, with two units at most: ``45s``, ``3m12s``, ``5h4m``, ``3d2h``."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole}s"
    for unit, name, lesser, lesser_name, until in (
        (60, "m", 1, "s", 600),
        (60, "m", 0, "", 3 * 3600),
        (3600, "h", 60, "m", 8 * 3600),
        (3600, "h", 0, "", 48 * 3600),
        (86400, "d", 3600, "h", 8 * 86400),
    ):
        if whole < until:
            rest = whole % unit // lesser if lesser else 0
            return f"{whole // unit}{name}" + (f"{rest}{lesser_name}" if rest else "")
    return f"{whole // 86400}d"


def rate(bytes_per_second: float) -> str:
    return f"{format_size(int(bytes_per_second))}/s"


_STEP = re.compile(
    r"\.(?P<field>(?:[^.\\\[]|\\.)+)|\[(?P<index>[0-9]+)\]|\[\?\(@\.(?P<key>\w+)==\"(?P<value>[^\"]*)\"\)\]"
)


def select(body: Any, path: str) -> str:
    r"""Return the value at a JSONPath as text; empty if there is none.

    Supported are those of printer columns, such as ``.status.phase``, ``.metadata.annotations.example\.org/name``,
    ``.list[0].name`` and ``.list[?(@.type=="Ready")].status``.
    """
    for step in _STEP.finditer(path):
        if step["field"] is not None:
            body = body.get(step["field"].replace("\\", "")) if isinstance(body, dict) else None
            continue
        items = body if isinstance(body, list) else []
        if step["key"] is not None:
            items = [item for item in items if isinstance(item, dict) and item.get(step["key"]) == step["value"]]
        body = next(iter(items[int(step["index"] or 0) :]), None)
    return "" if body is None else str(body)
