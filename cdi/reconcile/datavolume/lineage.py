"""Lineage of volumes: from which version of a golden image a volume descends, and what its users should know.

A version's PVC and VolumeSnapshot carry its origin, dates and revocation as annotations, so that a clone needs no look
at the DataImportCron. A clone takes over the origin, and passes it on to its own clones; it stays when the version is
removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from cdi.api.annotations import GOLDEN_DEPRECATED, GOLDEN_END_OF_LIFE, GOLDEN_LAST_CLONED, GOLDEN_ORIGIN, GOLDEN_REVOKED
from cdi.api.golden import Origin
from cdi.api.timestamps import timestamp
from cdi.reconcile.actions import Event, PatchObject
from cdi.reconcile.clone.types import CloneSource
from cdi.reconcile.types import PVC

CLONE_MARK_INTERVAL: Final = 60.0
"""Seconds within which further clones do not change `GOLDEN_LAST_CLONED`, since many often begin together."""
_MAX_TEXT = 400

REVOKED_SOURCE: Final = "RevokedSource"
END_OF_LIFE_SOURCE: Final = "EndOfLifeSource"
DEPRECATED_SOURCE: Final = "DeprecatedSource"


def parse_origin(annotations: Mapping[str, str]) -> Origin | None:
    """Return the recorded origin of a volume; None if there is none, or it is not valid."""
    return GOLDEN_ORIGIN.read(Origin, annotations)


def inherited_origin(source: Mapping[str, str]) -> dict[str, str]:
    """Return the annotation that a clone takes over from the annotations of its source."""
    origin = parse_origin(source)
    return GOLDEN_ORIGIN.write(origin) if origin is not None else {}


def mark_clone(source: CloneSource | PVC, now: float, *, snapshot: bool = False) -> tuple[PatchObject, ...]:
    """Record on a version that a clone of it begins; on another source nothing is recorded."""
    origin = parse_origin(source.annotations)
    if origin is None or (origin.namespace, origin.version) != (source.namespace, source.name):
        return ()
    last = GOLDEN_LAST_CLONED.read(source.annotations)
    if last is not None and 0 <= now - last.timestamp() < CLONE_MARK_INTERVAL:
        return ()
    patch = PatchObject(
        plural="volumesnapshots" if snapshot else "persistentvolumeclaims",
        namespace=source.namespace,
        name=source.name,
        uid=source.uid,
        annotations=dict(GOLDEN_LAST_CLONED.write(now)),
    )
    return (patch,)


def source_warnings(annotations: Mapping[str, str], place: str, now: float) -> Iterator[Event]:
    """Yield what the user of a clone should know about its source: revoked, beyond its end of life, or deprecated.

    Args:
        annotations: Annotations of the source.
        place: Its namespace and name.
        now: Seconds since the epoch.

    """
    notice = source_notice(annotations, now)
    if notice is not None:
        reason, clause = notice
        message = f"the source {place} is a version of a golden image that {clause}. Clone another version"
        yield Event(type="Warning", reason=reason, message=message)


def source_notice(annotations: Mapping[str, str], now: float) -> tuple[str, str] | None:
    """Return the reason of an event about a source, and a clause that says why; None if there is nothing to say."""
    reason = GOLDEN_REVOKED.read(annotations)
    if reason is not None:
        return REVOKED_SOURCE, f"was revoked ({reason if len(reason) <= _MAX_TEXT else f'{reason[: _MAX_TEXT - 1]}…'})"
    end = GOLDEN_END_OF_LIFE.read(annotations)
    since = GOLDEN_DEPRECATED.read(annotations)
    if end is not None and end.timestamp() <= now:
        return END_OF_LIFE_SOURCE, f"reached its end of life on {timestamp(end)}"
    if since is not None and since.timestamp() <= now:
        until = f"; its end of life is {timestamp(end)}" if end is not None else ""
        return DEPRECATED_SOURCE, f"is deprecated since {timestamp(since)}{until}"
    return None
