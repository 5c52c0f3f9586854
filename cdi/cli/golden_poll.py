"""The ``cdi golden`` commands ``poll``, ``wait`` and ``run``."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import click

from cdi.api.errors import UsageError
from cdi.cli import bars
from cdi.cli.golden_name import GoldenName, name_argument
from cdi.cli.options import duration
from cdi.cli.session import Session, subcommand

if TYPE_CHECKING:
    from cdi.client.golden_view import GoldenImage


@subcommand("poll")
@name_argument
@click.option("--wait/--no-wait", "waits", default=True, help="Wait for the poll's result (the default).")
@click.option("--timeout", type=duration, default="300", help="Wait at most this long; default: 5m.")
def poll(session: Session, *, name: str, waits: bool, timeout: float) -> None:
    """Ask the source for a new version now, and print what the poll found.

    A new version is then imported; cdi golden wait waits until it is offered.
    """
    from cdi.client.golden_commands import start_poll, wait_for_poll
    from cdi.client.golden_view import get

    image = get(session.backend, session.namespace, name)
    began = start_poll(session.backend, image)
    if not waits:
        click.echo(f"{name}: a poll is due now")
        return
    _continues(session, name, "the poll")
    now = wait_for_poll(session.backend, image, began, timeout=timeout)
    session.after_interrupt = None
    fresh = "new version" if now.wanted != image.wanted else "unchanged"
    click.echo(f"{name}: {fresh} {now.wanted} ({now.wanted_digest})")


@subcommand("wait")
@click.argument("names", nargs=-1, required=True, type=GoldenName(), metavar="NAME…")
@click.option("--timeout", type=duration, help="Wait at most this long for each, e.g. 15m; default: no limit.")
def wait(session: Session, *, names: tuple[str, ...], timeout: float | None) -> None:
    """Wait until the version that the last poll found is offered.

    Exits with an error if it failed, was not proven, or is withheld or revoked.
    """
    for name in names:
        wait_for_offer(session, name, timeout=timeout)


@subcommand("run")
@click.argument("names", nargs=-1, type=GoldenName(), metavar="[NAME…]")
@click.option("--once", is_flag=True, help="Run what is due now, and exit when it is done; for timers.")
def run(session: Session, *, names: tuple[str, ...], once: bool) -> None:
    """Keep the schedules of golden images on this machine, until Ctrl-C.

    Polls what is due (default: all golden images of all namespaces), and prints each version as it is offered.  cdi
    serve keeps the schedules too.  In a cluster the controller does it.
    """
    from cdi.local.golden_schedule import Keeper
    from cdi.logs import LogFormat, configure

    embedded = session.here("cdi golden run", "the cluster's controller keeps the schedules")
    configure(LogFormat.TEXT, "warning")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keeper = Keeper(embedded, names=names, namespace=session.namespace if names else None, report=click.echo)
    if not once:
        keeper.run(stop)
        return
    failures = keeper.run_due(stop)
    if failures:
        raise failures[0]


def wait_for_offer(session: Session, name: str, *, timeout: float | None) -> GoldenImage:
    """Wait with a bar until the wanted version is offered, print a final line, and return the image.

    Raises:
        GoldenVersionUnavailable: The wanted version cannot be offered.
        WaitTimeout: The timeout has expired; the work continues.
    """
    from cdi.client.golden_commands import require_offered, wait_until
    from cdi.client.golden_view import get

    image = get(session.backend, session.namespace, name)
    if not image.cron.spec.schedule and image.wanted is None:
        raise UsageError(f"golden image {name} has no schedule and no version", remedy="set its digest first")
    _continues(session, name, "the work")
    with bars.bar(name) as bar:
        now = wait_until(
            session.backend,
            image,
            lambda now: now.settled(),
            timeout=timeout,
            what="the import of the newest version",
            on_update=lambda now: bar.update(now.state, None, next(now.obstacles(), "")),
        )
    session.after_interrupt = None
    require_offered(now)
    bars.done(name, f"{now.state} {now.offered}")
    return now


def _continues(session: Session, name: str, what: str) -> None:
    where = "in the cluster" if session.in_cluster else "in the background"
    session.after_interrupt = (
        f"nothing, {what} continues {where}; {session.program} golden wait {name}{session.options()} waits for it"
    )
