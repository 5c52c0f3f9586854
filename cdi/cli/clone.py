"""The ``cdi clone`` command."""

from __future__ import annotations

from typing import Any

import click

from cdi.api.errors import NotFound
from cdi.api.kinds import DATA_VOLUMES
from cdi.cli.options import duration, quantity
from cdi.cli.session import Session, one_datavolume, subcommand
from cdi.cli.wait import wait_for


@subcommand("clone")
@click.argument("source")
@click.argument("name")
@click.option("--from-namespace", help="Set the namespace of SOURCE; default: that of NAME.")
@click.option("--size", type=quantity, help="Set the size of the clone, e.g. 20Gi; default: that of the source.")
@click.option("--wait/--no-wait", "waits", default=True, show_default=True)
@click.option("--timeout", type=duration, help="Wait at most this long; default: no limit.")
def command(
    session: Session,
    *,
    source: str,
    name: str,
    from_namespace: str | None,
    size: str | None,
    waits: bool,
    timeout: float | None,
) -> None:
    """Clone volume SOURCE to volume NAME.

    Blocks are shared (reflink) if the file system supports it, else copied inside the kernel; holes are kept.
    """
    session.here("cdi clone", "a PersistentVolumeClaim with a dataSource, where the storage can clone or restore")
    origin = {"namespace": from_namespace or session.namespace, "name": one_datavolume(source)}
    if not any(_exists(session, kind, **origin) for kind in ("pvc", "dv")):
        # A manifest may name a source that is created later; on the command line a missing source is a typing error.
        raise NotFound(
            f"volume {origin['namespace']}/{origin['name']} does not exist",
            remedy="list the volumes with cdi get pvc -A",
        )
    storage: dict[str, Any] = {} if size is None else {"resources": {"requests": {"storage": size}}}
    session.embedded.apply(
        [
            {
                "apiVersion": DATA_VOLUMES.api_version,
                "kind": "DataVolume",
                "metadata": {"name": name, "namespace": session.namespace},
                "spec": {"source": {"pvc": origin}, "storage": storage},
            }
        ]
    )
    if waits:
        wait_for(session, session.namespace, name, timeout=timeout)
    else:
        click.echo(f"datavolume/{name} created")


def _exists(session: Session, kind: str, namespace: str, name: str) -> bool:
    try:
        session.embedded.get(kind, namespace, name)
    except NotFound:
        return False
    return True
