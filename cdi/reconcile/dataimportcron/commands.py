"""Commands of users: rollback, promote, revoke, deprecate, retry and release.

A command is an annotation. It is carried out by writing its result into the status and removing the annotation in the
same request, so it takes effect exactly once. One that cannot be carried out stays and is reported; one that has to
wait (a rollback to a version that is imported again first) stays until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, assert_never

from cdi.api.annotations import DESIRED_DIGEST
from cdi.api.conditions import find_condition
from cdi.api.dataimportcron import ChannelStatus, GoldenVersion, VersionState
from cdi.api.golden import (
    ALL,
    PIN,
    PREVIOUS,
    Command,
    Deprecate,
    Promote,
    Release,
    Retry,
    Revoke,
    Rollback,
    command_label,
    parse_commands,
)
from cdi.api.phases import ConditionType
from cdi.api.timestamps import timestamp
from cdi.reconcile.actions import Action, Event
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.objects import delete_data_volume, delete_snapshot, objects_of
from cdi.reconcile.dataimportcron.pinning import is_pinnable, provides
from cdi.reconcile.dataimportcron.versions import History, VersionNotFound, is_offerable
from cdi.reconcile.datavolume.lineage import parse_origin

INVALID_COMMAND: Final = "InvalidGoldenCommand"
MAX_PROBLEM: Final = 900
"""Characters of one problem; an event has at most 1024."""
MAX_DESCENDANT_EVENTS: Final = 8
"""Events that name the volumes that descend from a revoked version; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What the commands change."""

    history: History
    channels: tuple[ChannelStatus, ...] = ()
    """Channels with the versions that they were promoted to."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Annotations of the commands that were carried out, to be removed (None) together with writing the status."""
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    problems: tuple[str, ...] = ()
    """Commands that were not carried out, each with cause and remedy."""
    refused: bool = False
    """Whether one of them cannot be carried out, instead of having to wait."""


class _Refused(Exception):
    """A command that cannot be carried out; the text has cause and remedy."""


class _Waiting(Exception):
    """A command that is carried out later; the text says what it waits for."""

    def __init__(self, message: str, result: CommandResult) -> None:
        super().__init__(message)
        self.result = result
        """What has to be done first."""


def apply_commands(context: CronContext, history: History) -> CommandResult:
    """Carry out the commands in the annotations of the DataImportCron.

    A version whose state becomes Importing has to be imported, although the source may offer a newer one.
    """
    commands = parse_commands(context.annotations)
    status = context.cron.status
    condition = find_condition(status.conditions if status else None, ConditionType.GOLDEN_SETTINGS)
    known = (condition.message or "") if condition is not None else ""
    result = CommandResult(history=history, channels=tuple((status.channels if status else None) or ()))
    problems: list[str] = [_about(context, problem.field, problem.message) for problem in commands.problems]
    refused = list(problems)
    for name, command in commands.valid:
        try:
            result = _apply(context, result, command)
        except (_Refused, VersionNotFound) as error:
            problems.append(_about(context, name, str(error)))
            refused.append(problems[-1])
        except _Waiting as wait:
            result = wait.result
            problems.append(_about(context, name, str(wait)))
        else:
            result = replace(result, annotations={**result.annotations, name: None})
    events = tuple(Event(type="Warning", reason=INVALID_COMMAND, message=text) for text in refused if text not in known)
    return replace(result, events=(*result.events, *events), problems=tuple(problems), refused=bool(refused))


def _about(context: CronContext, annotation: str, message: str) -> str:
    text = f"{command_label(annotation, context.annotations[annotation])}: {message}"
    return text if len(text) <= MAX_PROBLEM else f"{text[: MAX_PROBLEM - 1]}…"


def _apply(context: CronContext, result: CommandResult, command: Command) -> CommandResult:
    match command:
        case Rollback():
            return _roll_back(context, result, command)
        case Promote():
            return _promote(context, result, command)
        case Revoke():
            return _revoke(context, result, command)
        case Deprecate():
            return _deprecate(result, command)
        case Retry():
            return _retry(context, result, command)
        case Release():
            return _release(context, result, command)
        case _:
            assert_never(command)


def _roll_back(context: CronContext, result: CommandResult, command: Rollback) -> CommandResult:
    history = result.history
    # The status decides, not the DataSource: if writing the status failed after the DataSource was switched,
    # "previous" must not go back another version.
    now = history.offered(context.settings).version
    target = history.previous(now) if command.version == PREVIOUS else history.find(command.version)
    match target.state:
        case VersionState.AVAILABLE:
            pass
        case VersionState.IMPORTING | VersionState.PROVING:
            raise _Waiting(f'waiting for version "{target.name}", which is {target.state}', result)
        case VersionState.REMOVED:
            return _import_again(context, result, target)
        case _:
            raise _Refused(f'version "{target.name}" is {target.state} and cannot be offered; {_offerable(history)}')
    changed = history.rolled_back(target.name)
    before = f' from "{now.name}"' if now is not None and now.name != target.name else ""
    newer = changed.versions[: history.versions.index(target)]
    withheld = ", ".join(one.name for one in newer if one.withheld)
    message = f'Rolled back{before} to "{target.name}"; withheld until released: {withheld[:500] or "none"}'
    return _done(replace(result, history=changed), "RolledBack", message + _pinned(context))


def _import_again(context: CronContext, result: CommandResult, target: GoldenVersion) -> CommandResult:
    """Start the import of a version whose volume was removed; the rollback waits for it."""
    if not is_pinnable(context):
        raise _Refused(
            f'the volume of version "{target.name}" was removed, and this kind of source provides its current content '
            f"only; {_offerable(result.history)}"
        )
    if len(target.digest.rpartition(":")[2]) < 64:
        raise _Refused(
            f'the volume of version "{target.name}" was removed, and its whole digest is unknown; '
            f"{_offerable(result.history)}"
        )
    message = f'Importing version "{target.name}" again for a rollback, because its volume was removed'
    raise _Waiting(
        f'waiting for version "{target.name}", which is imported again',
        _done(replace(result, history=result.history.importing(target.name)), "ImportingAgain", message),
    )


def _promote(context: CronContext, result: CommandResult, command: Promote) -> CommandResult:
    channels = dict(context.settings.channels)
    rule = channels.get(command.channel)
    if rule is None:
        known = ", ".join(f'"{name}"' for name in channels) or "none"
        raise _Refused(f'there is no channel "{command.channel}"; the channels are {known}')
    if rule.behind is not None:
        raise _Refused(
            f'channel "{command.channel}" follows the newest version at a distance of {rule.behind}. '
            'Change its rule to {"manual": true} to promote versions by hand'
        )
    version = result.history.find(command.version)
    if not is_offerable(version):
        state = "withheld since a rollback" if version.state == VersionState.AVAILABLE else version.state
        raise _Refused(f'version "{version.name}" is {state} and cannot be promoted; {_offerable(result.history)}')
    since = timestamp(datetime.fromtimestamp(context.now, UTC))
    others = tuple(one for one in result.channels if one.name != command.channel)
    promoted = ChannelStatus(name=command.channel, version=version.name, since=since)
    message = f'Channel "{command.channel}" was promoted to version "{version.name}"'
    return _done(replace(result, channels=(*others, promoted)), "Promoted", message)


def _revoke(context: CronContext, result: CommandResult, command: Revoke) -> CommandResult:
    version = result.history.find(command.version)
    reason = f": {command.reason}" if command.reason else ""
    descendants = sorted(descendants_of(context, version.name))
    count = len(descendants)
    message = f"Revoked{reason}. {count} volume{'s descend' if count != 1 else ' descends'} from it"
    actions = result.actions
    if version.state == VersionState.IMPORTING:
        objects = objects_of(context, version.name)
        actions = (*actions, *delete_data_volume(objects), *delete_snapshot(objects))
    changed = replace(result, history=result.history.revoke(version.name, message), actions=actions)
    text = f'Version "{version.name}" was revoked and is offered no longer{reason}'[:MAX_PROBLEM] + _pinned(context)
    events = [*changed.events, Event(type="Warning", reason="VersionRevoked", message=text)]
    events += (
        Event(type="Warning", reason="DescendsFromRevokedVersion", message=text)
        for text in _naming(version.name, descendants, context.name)
    )
    return replace(changed, events=tuple(events))


def descendants_of(context: CronContext, version: str) -> Iterator[str]:
    """Yield ``namespace/name`` of the volumes that descend from a version, without the version's own."""
    for claim in context.objects.descendants_of(context.namespace, context.name):
        origin = parse_origin(claim.annotations)
        own = (claim.namespace, claim.name) == (context.namespace, version)
        if origin is None or own:
            continue
        if (origin.namespace, origin.cron, origin.version) == (context.namespace, context.name, version):
            yield f"{claim.namespace}/{claim.name}"


def _naming(version: str, volumes: list[str], cron: str) -> Iterator[str]:
    """Yield messages that name the volumes, as many as fit into `MAX_DESCENDANT_EVENTS` events."""
    head = f'Volumes that descend from the revoked version "{version}": '
    left = list(volumes)
    for _ in range(MAX_DESCENDANT_EVENTS):
        if not left:
            return
        text = head + left.pop(0)
        while left and len(text) + len(left[0]) + 2 <= MAX_PROBLEM:
            text += f", {left.pop(0)}"
        yield text
    if left:
        more = f'{len(left)} more volumes descend from the revoked version "{version}"'
        yield f"{more}. List them with: cdi golden describe {cron}"


def _deprecate(result: CommandResult, command: Deprecate) -> CommandResult:
    version = result.history.find(command.version)
    since = timestamp(command.since) if command.since is not None else None
    end = timestamp(command.end_of_life) if command.end_of_life is not None else None
    if since is None:
        message = f'Version "{version.name}" is no longer deprecated'
    else:
        message = f'Version "{version.name}" is deprecated from {since}' + (f"; its life ends at {end}" if end else "")
    changed = replace(result, history=result.history.deprecate(version.name, since, end))
    return _done(changed, "VersionDeprecated", message)


def _retry(context: CronContext, result: CommandResult, command: Retry) -> CommandResult:
    history = result.history
    version = history.find(command.version)
    if version.state not in (VersionState.FAILED, VersionState.UNPROVEN):
        failed = [one.name for one in history.versions if one.state in (VersionState.FAILED, VersionState.UNPROVEN)]
        names = f"the failed versions are {', '.join(failed[:8])}" if failed else "no version has failed"
        raise _Refused(f'version "{version.name}" is {version.state} and has not failed; {names}')
    again = "imported" if version.state == VersionState.FAILED or version.removed is not None else "proven"
    if again == "imported":
        desired = DESIRED_DIGEST.read(context.annotations)
        if not provides(context, version.digest, desired):
            newest = history.get(desired) if desired else None
            now = f'that of "{newest.name}"' if newest is not None else "not this version's as far as is known"
            raise _Refused(
                f'version "{version.name}" cannot be imported again, because this kind of source provides its current '
                f"content only, which is {now}. Remove the annotation, or restore the version's content at the source"
            )
        objects = objects_of(context, version.name)
        if objects.exist:
            # A new DataVolume must not adopt the incomplete volume of the failed import.
            actions = (*result.actions, *delete_data_volume(objects), *delete_snapshot(objects))
            message = f'waiting until the incomplete volume of version "{version.name}" is deleted'
            raise _Waiting(message, replace(result, actions=actions))
    changed = replace(result, history=history.retried(version.name))
    return _done(changed, "VersionRetried", f'Version "{version.name}" is {again} again')


def _release(context: CronContext, result: CommandResult, command: Release) -> CommandResult:
    history = result.history
    withheld = [one.name for one in history.versions if one.withheld]
    if command.version == ALL:
        names = withheld
    else:
        version = history.find(command.version)
        names = [version.name]
        if not version.withheld:
            others = f"the withheld versions are {', '.join(withheld[:8])}" if withheld else "no version is withheld"
            raise _Refused(f'version "{version.name}" is not withheld; {others}')
    for name in names:
        history = history.release(name)
    listed = ", ".join(names[:8]) or "none"
    message = f"Released withheld versions: {listed}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
    return _done(replace(result, history=history), "VersionReleased", message + _pinned(context))


def _offerable(history: History) -> str:
    names = [f'"{one.name}"' for one in history.versions if is_offerable(one)]
    return f"choose one of {', '.join(names[:8])}" if names else "no other version is available"


def _pinned(context: CronContext) -> str:
    pin = context.settings.pin
    return f'. Annotation {PIN} still requests "{pin}"; remove it to offer another version' if pin is not None else ""


def _done(result: CommandResult, reason: str, message: str) -> CommandResult:
    event = Event(type="Normal", reason=reason, message=message[:MAX_PROBLEM])
    return replace(result, events=(*result.events, event))
