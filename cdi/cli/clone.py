"""The ``cdi clone`` command."""

from __future__ import annotations

from typing import Any

import click

from cdi.api.errors import NotFound
from cdi.cli.options import duration, quantity
from cdi.cli.session import Session, one_datavolume, subcommand
from cdi.cli.wait import wait_for


@subcommand("clone")
@click.argument("source")
@click.argument("name")
@click.option("--from-namespace", help="Where the source is, if not in the namespace of the copy.")
@click.option("--size", type=quantity, help="Larger than the source, if wanted: 20Gi.")
@click.option("--wait/--no-wait", "waits", default=True, show_default=True)
@click.option("--timeout", type=duration, help="How long to wait at most; for ever unless given.")
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
    """Make volume NAME of volume SOURCE.

    Blocks are shared where the file system can, else copied inside the kernel; holes stay holes.
    """
    session.here("cdi clone", "a PersistentVolumeClaim with a dataSource, where the storage can clone or restore")
    origin = {"namespace": from_namespace or session.namespace, "name": one_datavolume(source)}
    if not any(_exists(session, kind, **origin) for kind in ("pvc", "dv")):
        # A manifest may name a source that is created later; on the command line a missing source is a typing error.
        raise NotFound(
            f"volume {origin['namespace']}/{origin['name']} does not exist", remedy="cdi get pvc -A lists the volumes"
        )
    storage: dict[str, Any] = {} if size is None else {"resources": {"requests": {"storage": size}}}
    session.embedded.apply(
        [
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
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
