"""Retention: which versions lose their volume.

As in KubeVirt's CDI, importsToKeep PVCs and as many VolumeSnapshots stay, those that were used last. Beyond that
nothing is removed that anybody may still need: what a DataSource offers or is about to offer, what is pinned or named
by a command, what is being cloned, and what the settings keep for a time after the import or the last clone. Failed
versions are counted apart. The volume of a revoked version stays until an administrator deletes it, as evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cdi.api.annotations import DESIRED_DIGEST, GOLDEN_LAST_CLONED, LAST_USE
from cdi.api.dataimportcron import (
    DEFAULT_IMPORTS_TO_KEEP,
    ChannelStatus,
    DataImportCron,
    GarbageCollect,
    GoldenVersion,
    VersionState,
)
from cdi.api.golden import Promote, Rollback, parse_commands
from cdi.api.names import LABEL_DATA_IMPORT_CRON
from cdi.api.timestamps import parse_timestamp
from cdi.reconcile.actions import Action, Event
from cdi.reconcile.dataimportcron.channels import promoted
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.objects import VersionObjects, delete_data_volume, delete_snapshot, objects_of
from cdi.reconcile.dataimportcron.versions import History, VersionNotFound

MAX_FAILED: Final = 3
"""Failed versions whose incomplete or unproven volume is kept for a diagnosis."""
_PENDING = frozenset({VersionState.IMPORTING, VersionState.PROVING})
_FAILED = frozenset({VersionState.FAILED, VersionState.UNPROVEN})

Form = Literal["claim", "snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """Versions whose volumes are removed."""

    history: History
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until a version that is kept for a time may be removed."""


def imports_to_keep(cron: DataImportCron) -> int:
    """Return how many imports stay: 3 by default; 0 means 1, as the current one always stays."""
    given = cron.spec.imports_to_keep
    return DEFAULT_IMPORTS_TO_KEEP if given is None else max(1, given)


def plan_retention(
    context: CronContext, history: History, offered: GoldenVersion | None, channels: Sequence[ChannelStatus]
) -> RetentionPlan:
    """Remove the volumes of outdated versions.

    Args:
        context: The DataImportCron.
        history: Its versions.
        offered: What the managed DataSource offers.
        channels: The channels, with the versions that they offer from now on.

    """
    if context.cron.spec.garbage_collect == GarbageCollect.NEVER:
        return RetentionPlan(history=history)
    protected = frozenset(_protected(context, history, offered, channels))
    found = {one.name: _own_objects(context, one.name) for one in history.versions if one.removed is None}
    waits: list[float] = []
    surplus: dict[str, list[Form]] = {}
    reasons: dict[str, str] = {}
    for form in ("claim", "snapshot"):
        for name, reason in _surplus(context, history, found, form):
            if name not in protected and not _is_kept(context, history, found[name], waits):
                surplus.setdefault(name, []).append(form)
                reasons[name] = reason
    actions: list[Action] = []
    events: list[Event] = []
    for name, forms in surplus.items():
        objects = found[name]
        if "claim" in forms:
            actions += delete_data_volume(objects)
        if "snapshot" in forms:
            actions += delete_snapshot(objects)
        if set(forms) == set(_forms(objects)):
            message = f'Removed version "{name}": {reasons[name]}'
            history = history.removed(name, "Outdated", message, context.now)
            events.append(Event(type="Normal", reason="VersionRemoved", message=message))
    return RetentionPlan(
        history=history, actions=tuple(actions), events=tuple(events), requeue_after=min(waits, default=None)
    )


def _protected(
    context: CronContext, history: History, offered: GoldenVersion | None, channels: Iterable[ChannelStatus]
) -> Iterator[str]:
    """Yield the names of versions that are never removed."""
    current = (context.cron.status.current_imports if context.cron.status is not None else None) or []
    yield from (one.data_volume_name for one in current)
    desired = history.get(DESIRED_DIGEST.read(context.annotations) or "")
    # The newest that is available is the last good one, even if a rollback withholds it; the one that was offered
    # last may still be in the DataSource.
    good = next((one for one in history.versions if one.state == VersionState.AVAILABLE), None)
    for version in (offered, desired, good, history.last_offered(), *history.versions[:1]):
        if version is not None:
            yield version.name
    yield from (one.name for one in history.versions if one.state in _PENDING)
    yield from promoted(channels)
    sources = (context.data_source_name, *(one.name for one in channels))
    found = (context.objects.data_source(context.namespace, name) for name in sources)
    yield from (one.volume.name for one in found if one is not None and one.volume is not None)
    # A version that was imported again for a rollback is not offered yet.
    commands = (command for _, command in parse_commands(context.annotations).valid)
    named = [command.version for command in commands if isinstance(command, Rollback | Promote)]
    for reference in (*named, context.settings.pin):
        if reference is None:
            continue
        try:
            yield history.find(reference).name
        except VersionNotFound:
            # It names no version, or several: any of them may be meant.
            yield from (one.name for one in history.versions if one.name.startswith(reference))


def _own_objects(context: CronContext, name: str) -> VersionObjects:
    """Return the objects of a version that carry the label of the DataImportCron.

    A PVC or VolumeSnapshot whose label a user has removed is not the DataImportCron's any more.
    """
    objects = objects_of(context, name)
    dv, claim, snapshot = objects.data_volume, objects.claim, objects.snapshot
    claim = claim if claim is not None and _is_own(context, claim.labels) else None
    # Deleting the DataVolume deletes its PVC as well.
    dv = dv if dv is not None and _is_own(context, dv.metadata.labels or {}) else None
    if objects.claim is not None and claim is None and not _is_incomplete(objects):
        dv = None
    return VersionObjects(
        name=name,
        data_volume=dv,
        claim=claim,
        snapshot=snapshot if snapshot is not None and _is_own(context, snapshot.labels) else None,
    )


def _is_own(context: CronContext, labels: Mapping[str, str]) -> bool:
    return labels.get(LABEL_DATA_IMPORT_CRON) == context.name


def _is_incomplete(objects: VersionObjects) -> bool:
    """Return whether the PVC was never completed; only a completed import gives it the label."""
    return objects.data_volume is not None and objects.complete_claim is None


def _forms(objects: VersionObjects) -> Iterator[Form]:
    if objects.claim is not None or objects.data_volume is not None:
        yield "claim"
    if objects.snapshot is not None:
        yield "snapshot"


def _surplus(
    context: CronContext, history: History, found: dict[str, VersionObjects], form: Form
) -> Iterator[tuple[str, str]]:
    """Yield the versions beyond the numbers to keep, with the reason."""
    present = [one for one in history.versions if one.name in found and form in _forms(found[one.name])]
    healthy = [one for one in present if one.state == VersionState.AVAILABLE]
    # Stable: versions with the same time, or without any, stay newest first.
    healthy.sort(key=lambda one: _last_use(found[one.name], form), reverse=True)
    keep = imports_to_keep(context.cron)
    for version in healthy[keep:]:
        used = _last_use(found[version.name], form)
        when = f", last used {used[:19]}Z" if used else ""
        yield version.name, f"importsToKeep is {keep}, and {keep} other versions were used later{when}"
    failed = [one for one in present if one.state in _FAILED]
    for version in failed[MAX_FAILED:]:
        yield version.name, f"it is {version.state}, and {MAX_FAILED} newer failed versions are kept"


def _last_use(objects: VersionObjects, form: Form) -> str:
    """Return the annotation lastUseTime, which sorts as text; empty if it is missing."""
    if form == "snapshot":
        return (LAST_USE.read(objects.snapshot.annotations) or "") if objects.snapshot is not None else ""
    if objects.claim is not None:
        return LAST_USE.read(objects.claim.annotations) or ""
    annotations = objects.data_volume.metadata.annotations if objects.data_volume is not None else None
    return LAST_USE.read(annotations or {}) or ""


def _is_kept(context: CronContext, history: History, objects: VersionObjects, waits: list[float]) -> bool:
    """Return whether a version is being cloned, or is kept for a time after its import or last clone.

    Seconds until that time ends are added to `waits`.
    """
    version = history.get(objects.name)
    if version is None or context.objects.clones_in_progress(context.namespace, objects.name):
        return True
    if version.state != VersionState.AVAILABLE:
        return False
    volumes = [one for one in (objects.claim, objects.snapshot) if one is not None]
    ends = [
        moment.timestamp() + seconds
        for moment, seconds in (
            (parse_timestamp(version.imported or version.found), context.settings.keep_for),
            *((GOLDEN_LAST_CLONED.read(one.annotations), context.settings.keep_unused_for) for one in volumes),
        )
        if moment is not None and seconds
    ]
    left = max(ends, default=0.0) - context.now
    if left > 0:
        waits.append(left)
    return left > 0
