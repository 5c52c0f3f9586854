"""Schedules in cron format, as in Kubernetes' CronJob (github.com/robfig/cron, standard parser).

A schedule has five fields: minute, hour, day of the month, month and day of the week. Each is a list of ``*``, ``?``,
``a`` or ``a-b``, optionally with ``/step``; months and days of the week may be English names. Alternatives are
``@hourly`` and similar words, and ``@every 1h30m``.
"""

from __future__ import annotations

import re

from cdi.api.rules.durations import parse_duration

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_TERM = re.compile(
    r"(?:[*?]|(?P<first>[0-9]{1,2}|[a-z]{3})(?:-(?P<last>[0-9]{1,2}|[a-z]{3}))?)(?:/(?P<step>[0-9]{1,4}))?"
)
MAX_LENGTH = 512


def schedule_problem(text: str) -> str | None:
    """Return the problem of a schedule, None if it is valid."""
    if len(text) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    if text.startswith("@"):
        word, _, rest = text.partition(" ")
        if word == "@every":
            seconds = parse_duration(rest)
            return None if seconds is not None and seconds >= 1 else "@every requires a duration such as 1h30m"
        return None if text in _MACROS else f"it is not one of {', '.join(_MACROS)} or @every"
    fields = text.split()
    if len(fields) != len(_FIELDS):
        return f"it has {len(fields)} fields, not 5 (minute, hour, day of the month, month, day of the week)"
    for (name, low, high, words), value in zip(_FIELDS, fields, strict=True):
        for term in value.lower().split(","):
            problem = _term_problem(term, low, high, words)
            if problem:
                return f"the {name} {problem}"
    return None


def _term_problem(term: str, low: int, high: int, words: dict[str, int]) -> str | None:
    match = _TERM.fullmatch(term)
    if match is None:
        return "is not *, a number, a range or a list of them"
    step = match["step"]
    if step is not None and not 1 <= int(step) <= high - low + 1:
        return f"has a step outside 1 to {high - low + 1}"
    if match["first"] is None:
        return None
    first = _number(match["first"], words)
    last = first if match["last"] is None else _number(match["last"], words)
    if first is None or last is None or not (low <= first <= high and low <= last <= high):
        return f"is outside {low} to {high}"
    return "has a range that ends before it begins" if last < first else None


def _number(text: str, words: dict[str, int]) -> int | None:
    return int(text) if text.isdigit() else words.get(text)
