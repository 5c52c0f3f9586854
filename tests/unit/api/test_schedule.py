"""Tests of schedules in cron format."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdi.api.schedule import MAX_LENGTH, Schedule

NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
FORMAT = "%Y-%m-%d %H:%M"


def next_time(schedule: str, after: str, zone: str = "UTC") -> str | None:
    """Return the next local time after a local time, or after a time with an offset."""
    local = zoneinfo.ZoneInfo(zone)
    moment = dt.datetime.fromisoformat(after)
    found = Schedule.parse(schedule).next_after(moment if moment.tzinfo else moment.replace(tzinfo=local), local)
    return None if found is None else dt.datetime.fromtimestamp(found, local).strftime(FORMAT)


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("0/15 * * * *", "2012-07-09 14:45", "2012-07-09 15:00"),
        ("0/15 * * * *", "2012-07-09 14:59", "2012-07-09 15:00"),
        ("0/15 * * * *", "2012-07-09 14:59:59", "2012-07-09 15:00"),
        ("5/15 * * * *", "2012-07-09 15:50", "2012-07-09 16:05"),
        ("20-35/15 * * * *", "2012-07-09 15:45", "2012-07-09 16:20"),
        ("*/15 * * * *", "2012-07-09 23:46", "2012-07-10 00:00"),
        ("20-35/15 * * * *", "2012-07-09 23:45", "2012-07-10 00:20"),
        ("20-35/15 1/2 * * *", "2012-07-09 23:35:51", "2012-07-10 01:20"),
        ("20-35/15 10-12 * * *", "2012-07-09 23:35:51", "2012-07-10 10:20"),
        ("20-35/15 1/2 */2 * *", "2012-07-09 23:35:51", "2012-07-11 01:20"),
        ("20-35/15 * 9-20 * *", "2012-07-09 23:35:51", "2012-07-10 00:20"),
        ("20-35/15 * 9-20 Jul *", "2012-07-09 23:35:51", "2012-07-10 00:20"),
        ("0 0 9 Apr-Oct ?", "2012-07-09 23:35", "2012-08-09 00:00"),
        ("0 0 * Feb Mon", "2012-07-09 23:35", "2013-02-04 00:00"),
        ("0 0 * Feb Mon/2", "2012-07-09 23:35", "2013-02-01 00:00"),
        ("* * * * *", "2012-12-31 23:59:45", "2013-01-01 00:00"),
        ("0 0 29 Feb ?", "2012-07-09 23:35", "2016-02-29 00:00"),
        ("0 0 30 Feb ?", "2012-07-09 23:35", None),
        ("0 0 31 Apr ?", "2012-07-09 23:35", None),
        ("30 08 ? Jul Sun", "2012-07-15 08:29", "2012-07-15 08:30"),
        ("30 08 15 Jul ?", "2012-07-15 08:30", "2013-07-15 08:30"),
        ("@hourly", "2012-07-09 15:04", "2012-07-09 16:00"),
        ("@daily", "2012-07-09 15:00", "2012-07-10 00:00"),
        ("@midnight", "2012-07-09 15:00", "2012-07-10 00:00"),
        ("@weekly", "2012-07-09 00:00", "2012-07-15 00:00"),
        ("@monthly", "2012-07-08 00:00", "2012-08-01 00:00"),
        ("@yearly", "2012-07-08 00:00", "2013-01-01 00:00"),
        ("@annually", "2012-07-08 00:00", "2013-01-01 00:00"),
    ],
)
def test_the_next_time_equals_that_of_cron(schedule: str, after: str, expected: str | None) -> None:
    assert next_time(schedule, after) == expected


@pytest.mark.parametrize(
    ("schedule", "matches", "others"),
    [
        # With both restricted, one of the two days is enough.
        ("* * 1,15 * Sun", ("2012-07-15", "2012-06-15", "2012-08-01"), ("2012-07-09",)),
        # A star means that the other one decides, with a step of 1 too.
        ("* * * * Mon", ("2012-07-09",), ("2012-07-15",)),
        ("* * 1,15 * *", ("2012-07-15",), ("2012-07-09",)),
        ("* * */1 * Mon", ("2012-07-09",), ("2012-07-15",)),
        # A greater step restricts.
        ("* * */10 * Sun", ("2012-07-11", "2012-07-15"), ("2012-07-10",)),
        ("* * */2 * Sun", ("2012-07-15", "2012-07-08", "2012-07-09"), ("2012-07-10",)),
        # A list that contains a star does not restrict either.
        ("* * 1,* * Mon", ("2012-07-09",), ("2012-07-01",)),
    ],
)
def test_days_of_month_and_week_are_combined(schedule: str, matches: tuple[str, ...], others: tuple[str, ...]) -> None:
    for day in (*matches, *others):
        moment = dt.datetime.fromisoformat(f"{day}T00:00:00+00:00")
        found = Schedule.parse(schedule).next_after(moment - dt.timedelta(seconds=1))
        assert (found == moment.timestamp()) is (day in matches), day


def test_a_schedule_that_hco_generates_ends_at_the_maximum_of_the_hour() -> None:
    assert next_time("17 7/12 * * *", "2026-01-01 00:00") == "2026-01-01 07:17"
    assert next_time("17 7/12 * * *", "2026-01-01 07:17") == "2026-01-01 19:17"
    assert next_time("17 7/12 * * *", "2026-01-01 19:17") == "2026-01-02 07:17"


@pytest.mark.parametrize(
    ("zone", "schedule", "after", "expected"),
    [
        # A skipped local time does not match on that day.
        ("America/New_York", "30 2 11 Mar ?", "2012-03-11 00:00", "2013-03-11 02:30"),
        ("America/New_York", "30 2 * * *", "2012-03-11 00:00", "2012-03-12 02:30"),
        ("America/New_York", "@hourly", "2012-03-11 01:30", "2012-03-11 03:00"),
        # A repeated one matches twice.
        ("America/New_York", "30 2 04 Nov ?", "2012-11-04T00:00:00-04:00", "2012-11-04 02:30"),
        ("America/New_York", "30 1 04 Nov ?", "2012-11-04T01:45:00-04:00", "2012-11-04 01:30"),
        ("America/New_York", "30 1 04 Nov ?", "2012-11-04T01:30:00-05:00", "2013-11-04 01:30"),
        # Days without a midnight.
        ("America/Sao_Paulo", "0 0 * * *", "2018-11-03 12:00", "2018-11-05 00:00"),
        ("America/Sao_Paulo", "0 12 4 11 *", "2018-11-03 12:00", "2018-11-04 12:00"),
        ("Asia/Beirut", "0 12 26 3 *", "2023-01-01 00:00", "2023-03-26 12:00"),
        ("Asia/Beirut", "0 1 26 3 *", "2023-01-01 00:00", "2023-03-26 01:00"),
        # Half an hour.
        ("Australia/Lord_Howe", "45 2 * * *", "2026-10-04 00:00", "2026-10-04 02:45"),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-04 00:00", "2026-10-05 02:15"),
    ],
)
def test_changes_of_the_clock_are_handled(zone: str, schedule: str, after: str, expected: str) -> None:
    assert next_time(schedule, after, zone) == expected


@pytest.mark.parametrize("prefix", ["TZ", "CRON_TZ"])
def test_a_schedule_may_name_its_time_zone(prefix: str) -> None:
    found = Schedule.parse(f"{prefix}=America/New_York  0 6 * * *").next_after(dt.datetime(2026, 7, 1, tzinfo=dt.UTC))
    assert found == dt.datetime(2026, 7, 1, 6, tzinfo=NEW_YORK).timestamp()
    assert Schedule.parse(f"{prefix}=Asia/Tokyo @daily").next_after(0.0) == 15 * 3600
    assert Schedule.parse(f"{prefix}= @daily").next_after(0.0) == 24 * 3600


def test_without_a_time_zone_the_local_one_is_used() -> None:
    assert Schedule.parse("@daily").next_after(0.0, zoneinfo.ZoneInfo("Asia/Tokyo")) == 15 * 3600


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [("@every 1s", 1), ("@every 1h30m", 5400), ("@every 1.9s", 1), ("TZ=UTC @every 24h", 86400)],
)
def test_an_interval_counts_from_the_last_poll(schedule: str, seconds: int) -> None:
    assert Schedule.parse(schedule).next_after(1000.9) == 1000 + seconds


@pytest.mark.parametrize(
    "schedule",
    [
        "0 0 1 1 0", "? ? ? ? ?", "*/1 */23 */31 */12 */6", "59 23 31 12 6", "00 007 01 1 SUN-SAT", "1,,2 * * * *",
        "0 0 * jan,FEB,Mar mon-fri", "0/90 * * * *", "0-30/7,45 * * * *", "\t0  0 * * *\n", "*/100 * * * *",
    ],
)  # fmt: skip
def test_valid_schedules_are_accepted(schedule: str) -> None:
    assert Schedule.parse(schedule).next_after(0.0) is not None


@pytest.mark.parametrize(
    ("schedule", "cause"),
    [
        ("", "it has 0 fields, not 5"),
        ("* * * *", "it has 4 fields, not 5"),
        ("0 * * * * *", "it has 6 fields, not 5"),
        ("hourly", "it has 1 fields, not 5"),
        ("61 * * * *", "the minute is outside 0 to 59"),
        ("* 24 * * *", "the hour is outside 0 to 23"),
        ("* * 0 * *", "the day of the month is outside 1 to 31"),
        ("* * * 13 *", "the month is outside 1 to 12"),
        ("* * * * 7", "the day of the week is outside 0 to 6"),
        ("* * * * sun-7", "the day of the week is outside 0 to 6"),
        ("* * * mon *", "the month is outside 1 to 12"),
        ("* * * * fri-mon", "the day of the week has a range that ends before it begins"),
        ("*/0 * * * *", "the minute has a step of 0"),
        ("*/ * * * *", "the minute is not *, a number, a range or a list of them"),
        ("-1 * * * *", "the minute is not *"),
        ("1-2-3 * * * *", "the minute is not *"),
        ("1/2/3 * * * *", "the minute is not *"),
        ("* * L * *", "the day of the month is not *"),
        (", * * * *", "the minute is empty"),
        ("\u0661 * * * *", "the minute is not *"),
        ("@Hourly", "it is not one of @yearly"),
        ("@reboot", "it is not one of @yearly"),
        ("@every", "it is not one of @yearly"),
        ("@every 999ms", "@every requires a duration of at least one second"),
        ("@every 1 h", "@every requires a duration"),
        ("@every -1h", "@every requires a duration"),
        ("@every 9999999999h", "@every requires a duration"),
        ("TZ=Mars/Base * * * * *", "'Mars/Base' is not a time zone such as Europe/Berlin"),
        ("TZ=../../etc/passwd * * * * *", "is not a time zone"),
        ("TZ=/etc/localtime * * * * *", "is not a time zone"),
        ("TZ=Europe * * * * *", "'Europe' is not a time zone"),
        ("TZ=UTC", "it has 0 fields, not 5"),
        ("TZ=UTC TZ=UTC * * * * *", "it has 6 fields, not 5"),
        ("* " * 300, f"it is longer than {MAX_LENGTH} characters"),
    ],
)
def test_invalid_schedules_are_refused_with_their_cause(schedule: str, cause: str) -> None:
    with pytest.raises(ValueError, match=".") as refused:
        Schedule.parse(schedule)
    assert cause in str(refused.value)


def _reference(schedule: str, after: int, zone: dt.tzinfo, minutes: int) -> float | None:
    """Search minute by minute, with a reading of the fields of its own."""
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    sets, stars = [], []
    for text, (low, high) in zip(schedule.split(), limits, strict=True):
        values: set[int] = set()
        star = False
        for part in text.split(","):
            body, _, step = part.partition("/")
            first, _, last = body.partition("-")
            begin = low if first == "*" else int(first)
            end = high if first == "*" or (step and not last) else int(last or first)
            values |= {number for number in range(low, high + 1) if begin <= number <= end} & set(
                range(begin, high + 1, int(step or 1))
            )
            star |= first == "*" and step in ("", "1")
        sets.append(values)
        stars.append(star)
    for moment in range(after // 60 * 60 + 60, after + minutes * 60, 60):
        local = dt.datetime.fromtimestamp(moment, zone)
        day, weekday = local.day in sets[2], (local.weekday() + 1) % 7 in sets[4]
        if (
            local.minute in sets[0]
            and local.hour in sets[1]
            and local.month in sets[3]
            and ((day and weekday) if stars[2] or stars[4] else (day or weekday))
        ):
            return float(moment)
    return None


def _terms(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    step = st.sampled_from(["", "", "/1", "/2", "/7"])
    ranges = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    term = st.tuples(st.just("*") | number.map(str) | ranges, step).map("".join)
    return st.just("*") | st.lists(term, min_size=1, max_size=3).map(",".join)


SCHEDULES = st.tuples(_terms(0, 59), _terms(0, 23), _terms(1, 31), _terms(1, 12), _terms(0, 6)).map(" ".join)
ZONES = [
    "UTC",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Europe/London",
]


@settings(max_examples=60, deadline=None)
@given(SCHEDULES, st.integers(1_600_000_000, 1_900_000_000), st.sampled_from(ZONES))
@example("0 0 * * *", 1679776200, "Asia/Beirut")
@example("59 23 * * *", 1700000000, "Pacific/Apia")
def test_the_next_time_equals_that_of_a_search_minute_by_minute(schedule: str, after: int, zone: str) -> None:
    minutes = 8 * 24 * 60
    local = zoneinfo.ZoneInfo(zone)
    found = Schedule.parse(schedule).next_after(after, local)
    expected = _reference(schedule, after, local, minutes)
    if expected is not None:
        assert found == expected
    else:
        assert found is None or found >= after + minutes * 60 - 60


def _has_one_meaning(schedule: str) -> bool:
    """Return whether cronsim reads a schedule alike.

    A day field that contains a star other than ``*`` restricts there and not here, or the reverse, a range of one
    value with a step has no end there, and a weekday with a step goes on to the 7, which is Sunday.
    """
    days = schedule.split()[2::2]
    return (
        all(text == "*" or "*" not in text for text in days)
        and not re.search(r"\b(\d+)-\1/", schedule)
        and not re.search(r"(?:^|,)\d/", days[1])
    )


@settings(max_examples=200, deadline=None)
@given(SCHEDULES.filter(_has_one_meaning), st.integers(1_600_000_000, 1_900_000_000))
def test_the_next_time_in_utc_equals_that_of_cronsim(schedule: str, after: int) -> None:
    moment = dt.datetime.fromtimestamp(after, dt.UTC)
    try:
        expected = next(CronSim(schedule, moment.replace(second=0)))
    except CronSimError:  # a day that no month has
        assert Schedule.parse(schedule).next_after(after) is None
        return
    assert Schedule.parse(schedule).next_after(after) == expected.timestamp()


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789*?/-, @TZ=Ljansu\n", max_size=40) | st.text(max_size=40))
def test_any_text_is_either_parsed_or_refused(text: str) -> None:
    try:
        schedule = Schedule.parse(text)
    except ValueError:
        return
    found = schedule.next_after(1_700_000_000)
    assert found is None or found > 1_700_000_000
