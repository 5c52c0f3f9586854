"""The ``cdi delete`` command."""

from __future__ import annotations

import click

from cdi.api.errors import KindNotServed, NotFound, UsageError
from cdi.cli.options import duration
from cdi.cli.session import Session, references, subcommand
from cdi.store.base import Key


@subcommand("delete")
@click.argument("what", nargs=-1)
@click.option("-f", "--filename", "names", multiple=True, help="Delete what these manifests name.")
@click.option("--all", "everything", is_flag=True, help="All of the kinds that are named.")
@click.option("--keep-volume", is_flag=True, help="Of a DataVolume: leave its claim and its disk.")
@click.option("--ignore-not-found", is_flag=True, help="Exit 0 where a named object is not there.")
@click.option("--timeout", type=duration, default="2m", show_default=True, help="How long to wait for the end.")
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
    """Delete objects: KIND NAME …, KIND/NAME …, or what manifests name.

    A DataVolume's worker, claim and volume go with it, and the command returns when they are gone.
    """
    wanted = [*_named(session, what, everything=everything), *_manifests(session, names)]
    if not wanted:
        if everything:
            click.echo("there is nothing to delete", err=True)
            return
        raise UsageError("nothing is named", remedy="KIND NAME …, KIND/NAME …, or -f FILE")
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
            raise UsageError(f"no {plural} are named", remedy="name them, or --all")
    return keys


def _manifests(session: Session, names: tuple[str, ...]) -> list[Key]:
    """Return the keys of the objects in manifests in reverse order, so that users of a Secret are deleted before it."""
    if not names:
        return []
    from cdi.runtime.apply import keys_of
    from cdi.runtime.manifests import load

    found = keys_of(load(names), namespace=session.namespace)
    return list(reversed(found))
