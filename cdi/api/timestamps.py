"""Times as Kubernetes writes them."""

from __future__ import annotations

import datetime as dt


def timestamp(now: dt.datetime) -> str:
    """RFC 3339 in UTC, whole seconds; `now` must know its zone."""
    if now.tzinfo is None:
        raise ValueError("a time without a zone")
    return now.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
