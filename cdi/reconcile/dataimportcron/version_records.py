"""Parts of a history: bounds, names in messages, and fields of its records."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from cdi.api.dataimportcron import GoldenVersion, VersionState
from cdi.api.golden import MAX_VERSIONS
from cdi.api.timestamps import timestamp

MAX_CANDIDATES: Final = 8
"""Versions named in a message."""


def bounded(versions: tuple[GoldenVersion, ...], bad: Collection[str]) -> tuple[GoldenVersion, ...]:
    """Return the versions without the oldest records of removed ones, bad ones last, if there are too many.

    There are more than `MAX_VERSIONS` only if that many have a volume.
    """
    surplus = len(versions) - MAX_VERSIONS
    if surplus <= 0:
        return versions
    oldest = [one for one in reversed(versions) if one.removed is not None]
    oldest.sort(key=lambda one: (one.state == VersionState.REVOKED, one.state in bad))
    dropped = {one.name for one in oldest[:surplus]}
    return tuple(one for one in versions if one.name not in dropped)


def unavailable_clause(version: GoldenVersion) -> str:
    """Return why a version is not available, as a clause."""
    detail = f" ({version.message[:200]})" if version.message else ""
    return f"it is {version.state}{detail}"


def has_prefix(version: GoldenVersion, reference: str) -> bool:
    return (
        version.digest.startswith(reference)
        or version.digest.rpartition(":")[2].startswith(reference)
        or version.name.startswith(reference)
    )


def quoted_names(versions: Iterable[GoldenVersion]) -> str:
    names = [f'"{one.name}"' for one in versions]
    more = f" and {len(names) - MAX_CANDIDATES} more" if len(names) > MAX_CANDIDATES else ""
    return ", ".join(names[:MAX_CANDIDATES]) + more


def partial_digest(suffix: str) -> str:
    """Return the beginning of the digest from which `cron_import` takes this suffix of a name."""
    return f"sha256:{suffix}" if re.fullmatch(r"[0-9a-f]{1,12}", suffix) else f"uid:{suffix}"


def rfc_3339(now: float) -> str:
    return timestamp(datetime.fromtimestamp(now, UTC))


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: without_none(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }
