"""The ``cdi limit`` command."""

from __future__ import annotations

import click

from cdi.api.errors import UsageError
from cdi.api.quantity import Quantity
from cdi.cli.options import quantity
from cdi.cli.session import Session, one_datavolume, subcommand


@subcommand("limit")
@click.argument("what")
@click.option(
    "--bandwidth", type=quantity, help="Limit the bytes per second read from the source, e.g. 50M; 0 removes the limit."
)
@click.option(
    "--connections", type=click.IntRange(0, 64), help="Fetch at most this many ranges concurrently; 0: automatic."
)
def command(session: Session, *, what: str, bandwidth: str | None, connections: int | None) -> None:
    """Limit the import of a DataVolume (dv/NAME), immediately and for later attempts."""
    if bandwidth is None and connections is None:
        raise UsageError("no limit is given", remedy="give --bandwidth 50M or --connections 2")
    name = one_datavolume(what)
    rate = None if bandwidth is None else Quantity.parse(bandwidth).bytes
    told = session.backend.limit(session.namespace, name, bandwidth=rate, connections=connections)
    click.echo(f"datavolume/{name} limited" + ("" if told else " from its next attempt on; no worker is running"))
