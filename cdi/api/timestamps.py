"""Timestamps in the format of Kubernetes."""

from __future__ import annotations

import datetime as dt


def timestamp(now: dt.datetime) -> str:
    """Format an aware time as RFC 3339 in UTC with whole seconds."""
    if now.tzinfo is None:
        raise ValueError("a time without a zone")
    return now.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
