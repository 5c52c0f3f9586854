"""The ``cdi logs`` command."""

from __future__ import annotations

import click

from cdi.cli.session import Session, one_datavolume, subcommand
from cdi.cli.show import printable
from cdi.logs import is_debug


@subcommand("logs")
@click.argument("what")
@click.option("-f", "--follow", is_flag=True, help="Follow the log until the DataVolume is finished.")
@click.option("-v", "--verbose", is_flag=True, help="Print every connection, request, retry and checkpoint as well.")
def command(session: Session, *, what: str, follow: bool, verbose: bool) -> None:
    """Print the logs of all attempts of a DataVolume's worker (dv/NAME).

    Only workers that start at a logVerbosity of 3 or more log connections, requests, retries and checkpoints.
    """
    for line in session.backend.log(session.namespace, one_datavolume(what), follow=follow):
        if verbose or not is_debug(line):
            click.echo(printable(line))
