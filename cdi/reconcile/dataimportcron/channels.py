"""Channels: further DataSources over the same history, each of which offers a version by a rule of its own.

A channel is created with its DataSource and deleted with its setting. It never moves to a version that is not
available or that is withheld; if no version satisfies the rule, it keeps what it has. If the version that it offers is
revoked, fails or is removed, the next best takes its place at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdi.api.dataimportcron import ChannelStatus, GoldenVersion, VersionState
from cdi.api.golden import Channel
from cdi.api.names import LABEL_DATA_IMPORT_CRON
from cdi.api.timestamps import parse_timestamp, timestamp
from cdi.reconcile.actions import Action, DeleteObject, Event
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.versions import History, is_offerable


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPlan:
    """What the channels are to offer."""

    channels: tuple[ChannelStatus, ...] = ()
    """For ``status.channels``: every channel with its version; None if it is to offer none."""
    actions: tuple[Action, ...] = ()
    """Deletion of DataSources whose channel was removed from the settings."""
    events: tuple[Event, ...] = ()
    problems: tuple[str, ...] = ()
    """Cause and remedy for channels that do not follow their rules."""
    requeue_after: float | None = None
    """Seconds until a version becomes old enough for a channel."""

    def to_status(self) -> list[dict[str, Any]] | None:
        """Return the value of ``status.channels``; None if there are no channels."""
        fields = ({name: text for name, text in one.to_dict().items() if text is not None} for one in self.channels)
        return list(fields) or None


def plan_channels(
    context: CronContext, history: History, offered: GoldenVersion | None, channels: Sequence[ChannelStatus]
) -> ChannelPlan:
    """Decide which version each channel offers.

    Args:
        context: The DataImportCron.
        history: Its versions.
        offered: What the managed DataSource offers.
        channels: The channels in the status, after promotions.

    """
    before = {one.name: one for one in channels}
    rules = dict(context.settings.channels)
    if context.settings_problem:
        # Invalid settings do not remove channels: they keep what they have, unless it becomes unavailable.
        rules = {name: Channel(manual=True) for name in before}
    kept: list[ChannelStatus] = []
    events: list[Event] = []
    problems: list[str] = []
    waits: list[float] = []
    for name, rule in rules.items():
        old = before.get(name)
        problem = _conflict(context, name, known=old is not None)
        if problem:
            problems.append(problem)
            kept += [old] if old is not None else []
            continue
        current = history.get(old.version) if old is not None and old.version else None
        version = _choose(context, history, rule, offered, current, waits)
        after = version.name if version is not None else None
        if old is not None and old.version == after:
            kept.append(old)
        else:
            since = timestamp(datetime.fromtimestamp(context.now, UTC))
            kept.append(ChannelStatus(name=name, version=after, since=since))
            if old is not None or after is not None:
                events.append(_moved(name, old, after))
        if version is None:
            problems.append(
                f'channel "{name}" offers no version, because none satisfies its rule yet. '
                "Wait, promote a version, or change the rule"
            )
    removed = tuple(one.name for one in channels if one.name not in rules)
    return ChannelPlan(
        channels=tuple(kept),
        actions=tuple(delete_channels(context, removed)),
        events=tuple(events),
        problems=tuple(problems),
        requeue_after=min(waits, default=None),
    )


def promoted(channels: Iterable[ChannelStatus]) -> frozenset[str]:
    """Return the names of the versions that channels offer."""
    return frozenset(one.version for one in channels if one.version)


def _choose(
    context: CronContext,
    history: History,
    rule: Channel,
    offered: GoldenVersion | None,
    current: GoldenVersion | None,
    waits: list[float],
) -> GoldenVersion | None:
    usable = current is not None and current.state == VersionState.AVAILABLE
    if rule.manual:
        # A version that was promoted by hand stays although a rollback of the managed DataSource withholds it.
        return current if usable else _next_best(history, current)
    usable = usable and current is not None and not current.withheld
    if context.settings.hold and usable:
        return current
    chosen = _by_rule(context, history, rule, offered, waits)
    if chosen is None:
        return current if usable else _next_best(history, current)
    # A version that was promoted by hand stays until the rule chooses a newer one. The distance of a rule with
    # "behind" is kept exactly.
    ahead = usable and current is not None and _index(history, current) < _index(history, chosen)
    return current if ahead and rule.behind is None else chosen


def _by_rule(
    context: CronContext, history: History, rule: Channel, offered: GoldenVersion | None, waits: list[float]
) -> GoldenVersion | None:
    """Return the newest version that satisfies the rule and is not newer than what the managed DataSource offers.

    Seconds until a version that is too young satisfies it are added to `waits`.
    """
    if offered is None:
        return None
    candidates = [one for one in history.versions[_index(history, offered) :] if is_offerable(one)]
    for version in candidates[rule.behind or 0 :]:
        if rule.proven and (version.proof is None or not version.proof.booted):
            continue
        if rule.after is not None:
            since = parse_timestamp(version.offered)
            if since is None:
                continue
            left = since.timestamp() + rule.after - context.now
            if left > 0:
                waits.append(left)
                continue
        return version
    return None


def _next_best(history: History, current: GoldenVersion | None) -> GoldenVersion | None:
    """Return the newest version that is older than an unavailable one, else the oldest that is newer."""
    if current is None:
        return None
    index = _index(history, current)
    older = (one for one in history.versions[index + 1 :] if is_offerable(one))
    newer = (one for one in reversed(history.versions[:index]) if is_offerable(one))
    return next(older, None) or next(newer, None)


def _index(history: History, version: GoldenVersion) -> int:
    return next(index for index, one in enumerate(history.versions) if one.name == version.name)


def _conflict(context: CronContext, name: str, *, known: bool) -> str:
    """Return why a DataSource cannot be that of a channel; empty if it can.

    A DataSource without the label is left alone: without it, users switch automatic updates off.
    """
    if name == context.data_source_name:
        return f'channel "{name}" is the managed DataSource itself. Choose another name'
    found = context.objects.data_source(context.namespace, name)
    label = (found.metadata.labels or {}).get(LABEL_DATA_IMPORT_CRON) if found is not None else context.name
    if label == context.name or (known and not label):
        return ""
    if label:
        return f'DataSource "{name}" of a channel is managed by DataImportCron "{label}". Choose another name'
    return (
        f'DataSource "{name}" of a channel exists and was not created for it. Choose another name, '
        f'or set its label {LABEL_DATA_IMPORT_CRON} to "{context.name}"'
    )


def delete_channels(context: CronContext, names: Iterable[str]) -> Iterator[DeleteObject]:
    """Yield the deletion of the DataSources of these channels, as far as they belong to the DataImportCron."""
    for name in names:
        found = context.objects.data_source(context.namespace, name)
        if found is None or found.metadata.deletion_timestamp is not None or name == context.data_source_name:
            continue
        if (found.metadata.labels or {}).get(LABEL_DATA_IMPORT_CRON) == context.name:
            yield DeleteObject(
                plural="datasources", namespace=context.namespace, name=name, uid=found.metadata.uid or ""
            )


def _moved(name: str, old: ChannelStatus | None, after: str | None) -> Event:
    before = f' from "{old.version}"' if old is not None and old.version else ""
    if after is None:
        return Event(type="Warning", reason="ChannelEmpty", message=f'Channel "{name}" offers no version any more')
    return Event(type="Normal", reason="ChannelMoved", message=f'Channel "{name}" moved{before} to version "{after}"')
