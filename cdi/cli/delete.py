"""The ``cdi delete`` command."""

from __future__ import annotations

import click

from cdi.api.errors import KindNotServed, NotFound, UsageError
from cdi.cli.options import duration
from cdi.cli.session import Session, references, subcommand
from cdi.store.base import Key


@subcommand("delete")
@click.argument("what", nargs=-1)
@click.option("-f", "--filename", "names", multiple=True, help="Delete the objects in these manifests.")
@click.option("--all", "everything", is_flag=True, help="Delete all objects of the given kinds.")
@click.option("--keep-volume", is_flag=True, help="Keep the PVC and the disk of a DataVolume.")
@click.option("--ignore-not-found", is_flag=True, help="Exit 0 if a named object does not exist.")
@click.option(
    "--timeout", type=duration, default="2m", show_default=True, help="Wait at most this long for the deletion."
)
def command(
    session: Session,
    *,
    what: tuple[str, ...],
    names: tuple[str, ...],
    everything: bool,
    keep_volume: bool,
    ignore_not_found: bool,
    timeout: float,
) -> None:
    """Delete objects, given as KIND NAME …, as KIND/NAME …, or by manifests.

    A DataVolume is deleted with its worker, PVC and volume; the command returns when all are deleted.
    """
    wanted = [*_named(session, what, everything=everything), *_manifests(session, names)]
    if not wanted:
        if everything:
            click.echo("no object to delete", err=True)
            return
        raise UsageError("no object is given", remedy="give KIND NAME …, KIND/NAME …, or -f FILE")
    missing: NotFound | None = None
    for key in wanted:
        try:
            session.backend.delete(key.plural, key.namespace, key.name, cascade=not keep_volume, timeout=timeout)
        except KindNotServed:
            raise
        except NotFound as error:
            missing = missing or error
            continue
        click.echo(f"{key.kind.singular}/{key.name} deleted")
    if missing is not None and not ignore_not_found:
        raise missing


def _named(session: Session, what: tuple[str, ...], *, everything: bool) -> list[Key]:
    keys: list[Key] = []
    for plural, name in references(what) if what else []:
        if name is not None:
            keys.append(Key.of(plural, session.namespace, name))
        elif everything:
            keys += [Key.of_object(item) for item in session.store.list(plural, session.namespace)]
        else:
            raise UsageError(f"no names of {plural} are given", remedy="give their names, or --all")
    return keys


def _manifests(session: Session, names: tuple[str, ...]) -> list[Key]:
    """Return the keys of the objects in manifests in reverse order, so that users of a Secret are deleted before it."""
    if not names:
        return []
    from cdi.client.apply import keys_of
    from cdi.client.manifests import load

    found = keys_of(load(names), namespace=session.namespace)
    return list(reversed(found))
