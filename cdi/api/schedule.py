"""Schedules in cron format, as in Kubernetes' CronJob (github.com/robfig/cron v3, standard parser).

A schedule has five fields: minute, hour, day of the month, month and day of the week. Each is a list of ``*``, ``?``,
``a`` or ``a-b``, optionally with ``/step``; ``a/step`` ends at the maximum of the field. Months and days of the week
may be English names; Sunday is 0, and 7 is invalid. Alternatives are ``@hourly`` and similar words, and
``@every 1h30m``. A prefix ``TZ=Zone `` or ``CRON_TZ=Zone `` sets the time zone.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import zoneinfo
from dataclasses import dataclass
from typing import Self

from cdi.api.rules.durations import parse_duration
from cdi.api.rules.problems import truncate

MAX_LENGTH = 512
"""Maximum length of a schedule in characters."""
MAX_YEARS = 5
"""Years after which a search for the next time ends."""
_MINUTE = 60
_STEP = 15 * 60
"""Every change of a time zone since 1972 takes place on such a multiple of local time."""
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_TERM = re.compile(
    r"(?:(?P<any>[*?])|(?P<first>[0-9]{1,9}|[a-z]{3})(?:-(?P<last>[0-9]{1,9}|[a-z]{3}))?)(?:/(?P<step>[0-9]{1,9}))?"
)
_ZONE = re.compile(r"(?:CRON_)?TZ=(?P<name>\S*)(?:\s+(?P<rest>.*))?", re.DOTALL)
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    name: str
    lowest: int
    highest: int
    words: tuple[str, ...] = ()
    """Names of the values from `lowest`."""


_UNITS = (
    _Unit(name="minute", lowest=0, highest=59),
    _Unit(name="hour", lowest=0, highest=23),
    _Unit(name="day of the month", lowest=1, highest=31),
    _Unit(name="month", lowest=1, highest=12, words=MONTHS),
    _Unit(name="day of the week", lowest=0, highest=6, words=DAYS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """Values of one field."""

    values: frozenset[int]
    any: bool
    """The field contains ``*`` or ``?`` without a step, so it does not restrict the day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calendar:
    """Local times that match five fields."""

    minute: _Field
    hour: _Field
    day: _Field
    month: _Field
    weekday: _Field

    def is_day(self, date: dt.date) -> bool:
        day = date.day in self.day.values
        weekday = date.isoweekday() % 7 in self.weekday.values
        return (day and weekday) if self.day.any or self.weekday.any else (day or weekday)

    def next_after(self, after: float, zone: dt.tzinfo) -> float | None:
        """Return the first whole minute after `after` whose time in `zone` matches.

        A local time that a change of the clock skips does not match on that day, one that it repeats matches twice.
        """
        moment = (math.floor(after) // _MINUTE + 1) * _MINUTE
        last_year = min(dt.datetime.fromtimestamp(moment, zone).year + MAX_YEARS, dt.MAXYEAR - 1)
        # The number of steps is limited: one for each month and day, and for a day quarters of an hour and minutes.
        while (local := dt.datetime.fromtimestamp(moment, zone)).year <= last_year:
            if local.month not in self.month.values:
                first = local.date().replace(day=1) + dt.timedelta(days=32)
                moment = _start(first.replace(day=1), zone, moment)
            elif not self.is_day(local.date()):
                moment = _start(local.date() + dt.timedelta(days=1), zone, moment)
            elif local.hour not in self.hour.values:
                moment += _STEP - (local.minute * 60 + local.second) % _STEP
            elif local.minute not in self.minute.values:
                moment += _MINUTE
            else:
                return float(moment)
        return None


def _start(date: dt.date, zone: dt.tzinfo, after: int) -> int:
    """Return the first moment of a date in `zone`, at least a minute after `after`."""
    midnight = dt.datetime(date.year, date.month, date.day, tzinfo=zone)
    return max(int(midnight.timestamp()), after + _MINUTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Times at which a source is polled."""

    calendar: _Calendar | None = None
    every: int | None = None
    """Interval in seconds instead of a calendar."""
    zone: zoneinfo.ZoneInfo | None = None
    """None for the local time zone."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a schedule; raise `ValueError` with the cause."""
        if len(text) > MAX_LENGTH:
            raise ValueError(f"it is longer than {MAX_LENGTH} characters")
        zone = None
        if match := _ZONE.fullmatch(text):
            zone, text = _zone(match["name"]), (match["rest"] or "").strip()
        if text.startswith("@every "):
            seconds = parse_duration(text.removeprefix("@every "))
            if seconds is None or seconds < 1:
                raise ValueError("@every requires a duration of at least one second, such as 1h30m")
            return cls(every=math.floor(seconds), zone=zone)
        if text.startswith("@") and text not in MACROS:
            raise ValueError(f"it is not one of {', '.join(MACROS)} or @every with a duration such as 1h30m")
        return cls(calendar=_calendar(MACROS.get(text, text)), zone=zone)

    def next_after(self, after: dt.datetime | float, local: dt.tzinfo = dt.UTC) -> float | None:
        """Return the first time after `after`, or None if there is none within `MAX_YEARS`.

        For ``@every``, `after` must be the time of the last poll; with the present time, the next one is never reached.

        Args:
            after: An aware time, or seconds since the epoch, in the years 1970 to 9998.
            local: Time zone of a schedule that names none.

        Returns:
            Seconds since the epoch.
        """
        seconds = after.timestamp() if isinstance(after, dt.datetime) else after
        if self.calendar is not None:
            return self.calendar.next_after(seconds, self.zone or local)
        return None if self.every is None else float(math.floor(seconds) + self.every)


def _zone(name: str) -> zoneinfo.ZoneInfo:
    problem = f"{truncate(name, 40)!r} is not a time zone such as Europe/Berlin"
    if not _ZONE_NAME.fullmatch(name or "UTC"):
        raise ValueError(problem)
    try:
        return zoneinfo.ZoneInfo(name or "UTC")
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(problem) from error


def _calendar(text: str) -> _Calendar:
    fields = text.split()
    if len(fields) != len(_UNITS):
        names = ", ".join(unit.name for unit in _UNITS)
        raise ValueError(f"it has {len(fields)} fields, not {len(_UNITS)} ({names})")
    minute, hour, day, month, weekday = (_field(value, unit) for value, unit in zip(fields, _UNITS, strict=True))
    return _Calendar(minute=minute, hour=hour, day=day, month=month, weekday=weekday)


def _field(text: str, unit: _Unit) -> _Field:
    values: set[int] = set()
    unrestricted = False
    for term in filter(None, text.lower().split(",")):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(f"the {unit.name} is not *, a number, a range or a list of them")
        step = int(match["step"] or 1)
        if step == 0:
            raise ValueError(f"the {unit.name} has a step of 0")
        first, last = _bounds(match, unit)
        values.update(range(first, last + 1, step))
        unrestricted |= match["any"] is not None and step == 1
    if not values:
        raise ValueError(f"the {unit.name} is empty")
    return _Field(values=frozenset(values), any=unrestricted)


def _bounds(match: re.Match[str], unit: _Unit) -> tuple[int, int]:
    if match["any"]:
        return unit.lowest, unit.highest
    first = _number(match["first"], unit)
    end = unit.highest if match["step"] else first
    last = _number(match["last"], unit) if match["last"] else end
    if last < first:
        raise ValueError(f"the {unit.name} has a range that ends before it begins")
    return first, last


def _number(text: str, unit: _Unit) -> int:
    if text in unit.words:
        return unit.words.index(text) + unit.lowest
    if not text.isdigit() or not unit.lowest <= int(text) <= unit.highest:
        raise ValueError(f"the {unit.name} is outside {unit.lowest} to {unit.highest}")
    return int(text)
