"""Timestamps in the format of Kubernetes."""

from __future__ import annotations

import datetime as dt
import re

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def timestamp(now: dt.datetime) -> str:
    """Format an aware time as RFC 3339 in UTC with whole seconds."""
    if now.tzinfo is None:
        raise ValueError("a time without a zone")
    return now.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str | None) -> dt.datetime | None:
    """Return the UTC time of an RFC 3339 timestamp, with at most microseconds; None for any other text or None."""
    if text is None or not _RFC_3339.fullmatch(text):
        return None
    try:
        return dt.datetime.fromisoformat(text.upper()).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None  # such as February 30


def epoch_seconds(text: object) -> float | None:
    """Return the seconds since the epoch of a timestamp of an API object; None if it is absent or invalid."""
    try:
        return dt.datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return None
