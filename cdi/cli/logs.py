"""The ``cdi logs`` command."""

from __future__ import annotations

import click

from cdi.cli.session import Session, one_datavolume, subcommand
from cdi.cli.show import printable


@subcommand("logs")
@click.argument("what")
@click.option("-f", "--follow", is_flag=True, help="Follow the log until the DataVolume is finished.")
def command(session: Session, *, what: str, follow: bool) -> None:
    """Print the logs of all attempts of a DataVolume's worker (dv/NAME)."""
    for line in session.backend.log(session.namespace, one_datavolume(what), follow=follow):
        click.echo(printable(line))
