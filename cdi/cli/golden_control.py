"""The ``cdi golden`` commands that decide what is offered: each writes one annotation of a DataImportCron."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdi.api import golden
from cdi.api.errors import NotFound, UsageError
from cdi.api.timestamps import timestamp
from cdi.cli.golden_name import name_argument
from cdi.cli.options import duration
from cdi.cli.session import Session, subcommand
from cdi.cli.show import printable

if TYPE_CHECKING:
    from cdi.client.golden_view import GoldenImage

F = TypeVar("F", bound=Callable[..., Any])
_TIMEOUT = 60.0
"""Seconds; the controller carries a command out within a second unless it is not running."""


def wait_options(function: F) -> F:
    """Add ``--wait/--no-wait`` and ``--timeout``."""
    for option in (
        click.option(
            "--timeout", type=duration, default=str(int(_TIMEOUT)), help="Wait at most this long; default: 60s."
        ),
        click.option(
            "--wait/--no-wait",
            "waits",
            default=True,
            help="Wait until the controller has carried it out (the default), or only write it down.",
        ),
    ):
        function = option(function)
    return function


def _version(what: str) -> Callable[[F], F]:
    return click.argument("version", metavar=what)


@subcommand("pin")
@name_argument
@_version("VERSION")
@wait_options
def pin(session: Session, *, name: str, version: str, waits: bool, timeout: float) -> None:
    """Offer VERSION until the image is unpinned.

    VERSION is a version's name, digest or the beginning of its digest.  Polls and imports continue.
    """
    image = _image(session, name)
    wanted = image.find(version).name
    _declare(session, image, golden.PIN, wanted)
    if waits:
        image = _until_offered(session, image, wanted, timeout)
    click.echo(f"{name}: pinned to {wanted}")


@subcommand("unpin")
@name_argument
@wait_options
def unpin(session: Session, *, name: str, waits: bool, timeout: float) -> None:
    """End a pin: the newest available version is offered again."""
    image = _image(session, name)
    if golden.PIN not in image.annotations:
        click.echo(f"{name}: not pinned")
        return
    _declare(session, image, golden.PIN, None)
    newest = image.unpinned()
    if waits and newest is not None and image.annotations.get(golden.HOLD) != "true":
        _until_offered(session, image, newest, timeout)
        click.echo(f"{name}: unpinned, offers {newest}")
    else:
        click.echo(f"{name}: unpinned")


@subcommand("rollback")
@name_argument
@click.argument("version", metavar="[VERSION]", default="previous")
@wait_options
def rollback(session: Session, *, name: str, version: str, waits: bool, timeout: float) -> None:
    """Return to VERSION, by default to the one that was offered before; nothing is downloaded.

    Newer versions are withheld until cdi golden release; a version that a later poll finds is offered as usual.
    """
    image = _image(session, name)
    value = version if version == "previous" else image.find(version).name
    now = _order(session, image, golden.ROLLBACK, value, waits=waits, timeout=timeout)
    if now is not None:
        held = ", ".join(one.name for one in now.versions if one.withheld)
        click.echo(f"{name}: rolled back to {now.offered or value}" + (f"; withheld: {held}" if held else ""))


@subcommand("promote")
@name_argument
@click.argument("channel")
@_version("VERSION")
@wait_options
def promote(session: Session, *, name: str, channel: str, version: str, waits: bool, timeout: float) -> None:
    """Make the DataSource CHANNEL offer VERSION; cdi golden describe lists the channels."""
    image = _image(session, name)
    wanted = image.find(version).name
    now = _order(session, image, golden.PROMOTE, f"{channel}={wanted}", waits=waits, timeout=timeout)
    if now is not None:
        click.echo(f"{name}: channel {channel} offers {wanted}")


@subcommand("revoke")
@name_argument
@_version("VERSION")
@click.option("--reason", default="", help="Record why, e.g. a CVE.")
@wait_options
def revoke(session: Session, *, name: str, version: str, reason: str, waits: bool, timeout: float) -> None:
    """Withdraw VERSION from every DataSource for good, and name the volumes that descend from it.

    Volumes that were cloned from it stay.
    """
    from cdi.client.golden_view import descendants

    image = _image(session, name)
    wanted = image.find(version).name
    value = f"{wanted}: {_one_line(reason, '--reason')}" if reason else wanted
    now = _order(session, image, golden.REVOKE, value, waits=waits, timeout=timeout)
    if now is not None:
        click.echo(f"{name}: revoked {wanted}, offers {now.offered or 'nothing'}")
        for one in descendants(session.backend, now):
            if one.version == wanted:
                click.echo(f"volume {one.namespace}/{one.name} descends from it")


@subcommand("deprecate")
@name_argument
@_version("VERSION")
@click.option("--from", "begin", metavar="DATE", help="Warn from this RFC 3339 date on; default: now.")
@click.option("--end-of-life", "end", metavar="DATE", help="Record the end of support.")
@click.option("--never", is_flag=True, help="Take a deprecation back.")
@wait_options
def deprecate(
    session: Session,
    *,
    name: str,
    version: str,
    begin: str | None,
    end: str | None,
    never: bool,
    waits: bool,
    timeout: float,
) -> None:
    """Warn of clones of VERSION from a date on; it stays offered."""
    if never and (begin or end):
        raise UsageError("--never takes the dates back", remedy="omit --from and --end-of-life")
    image = _image(session, name)
    wanted = image.find(version).name
    start = "never" if never else _date(begin, "--from") if begin else timestamp(datetime.now(UTC))
    value = f"{wanted} from={start}" + (f" endOfLife={_date(end, '--end-of-life')}" if end else "")
    now = _order(session, image, golden.DEPRECATE, value, waits=waits, timeout=timeout)
    if now is not None:
        click.echo(f"{name}: {wanted} is {'no longer deprecated' if never else f'deprecated from {start}'}")


@subcommand("hold")
@name_argument
def hold(session: Session, *, name: str) -> None:
    """Stop importing and offering new versions; polls continue."""
    _declare(session, _image(session, name), golden.HOLD, "true")
    click.echo(f"{name}: on hold")


@subcommand("unhold")
@name_argument
def unhold(session: Session, *, name: str) -> None:
    """End a hold."""
    _declare(session, _image(session, name), golden.HOLD, None)
    click.echo(f"{name}: not on hold")


@subcommand("retry")
@name_argument
@click.argument("version", metavar="[VERSION]", required=False)
@wait_options
def retry(session: Session, *, name: str, version: str | None, waits: bool, timeout: float) -> None:
    """Import or prove a failed VERSION again; by default the one that is wanted."""
    image = _image(session, name)
    text = version or image.wanted
    if text is None:
        raise NotFound(f"no poll of {name} has found a version yet", remedy=f"cdi golden poll {name}")
    wanted = image.find(text).name
    if _order(session, image, golden.RETRY, wanted, waits=waits, timeout=timeout) is not None:
        click.echo(f"{name}: {wanted} is tried again; cdi golden wait {name} waits for it")


@subcommand("release")
@name_argument
@click.argument("version", metavar="[VERSION]", default="all")
@wait_options
def release(session: Session, *, name: str, version: str, waits: bool, timeout: float) -> None:
    """Offer VERSION, by default every version, again that was withheld by a rollback."""
    image = _image(session, name)
    value = version if version == "all" else image.find(version).name
    now = _order(session, image, golden.RELEASE, value, waits=waits, timeout=timeout)
    if now is not None:
        click.echo(f"{name}: released {value}, offers {now.offered or 'nothing'}")


# --- internals ------------------------------------------------------------------------------------------------------


def _image(session: Session, name: str) -> GoldenImage:
    from cdi.client.golden_view import get

    return get(session.backend, session.namespace, name)


def _order(
    session: Session, image: GoldenImage, annotation: str, value: str, *, waits: bool, timeout: float
) -> GoldenImage | None:
    """Write a command, and return the image once it has been carried out; None if that is not waited for."""
    from cdi.client.golden_commands import run_command, write_command

    if not waits:
        write_command(session.backend, image, annotation, value)
        click.echo(f"{image.name}: written down; cdi golden describe {image.name}{session.options()} shows the result")
        return None
    where = "in the cluster" if session.in_cluster else "in the background"
    session.after_interrupt = (
        f"nothing, the command is carried out {where};"
        f" {session.program} golden describe {image.name}{session.options()} shows its result"
    )
    now = run_command(session.backend, image, annotation, value, timeout=timeout)
    session.after_interrupt = None
    return now


def _declare(session: Session, image: GoldenImage, annotation: str, value: str | None) -> None:
    from cdi.client.golden_commands import annotate

    annotate(session.backend, image, {annotation: value})


def _until_offered(session: Session, image: GoldenImage, version: str, timeout: float) -> GoldenImage:
    from cdi.client.golden_commands import wait_until

    session.after_interrupt = (
        f"nothing, it is written down; {session.program} golden list{session.options()} shows the result"
    )
    now = wait_until(
        session.backend,
        image,
        lambda now: now.offered == version,
        timeout=timeout,
        what=f"offering {version}",
    )
    session.after_interrupt = None
    return now


def _one_line(text: str, option: str) -> str:
    if not text.isprintable():
        raise UsageError(f"the value of {option} has line breaks or control characters", remedy="give one line")
    return printable(text)


def _date(text: str, option: str) -> str:
    """Return an RFC 3339 time in UTC for a date with or without time and zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"the value of {option}, {text[:40]!r}, is not a date", remedy="write 2027-03-31 or 2027-03-31T12:00:00Z"
        ) from error
    return timestamp(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
