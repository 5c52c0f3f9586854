"""The ``cdi apply`` command."""

from __future__ import annotations

import click

from cdi.api.errors import UsageError
from cdi.cli.options import duration
from cdi.cli.session import Session, subcommand
from cdi.cli.show import document, one_or_list, printable
from cdi.cli.wait import wait_for_all


@subcommand("apply")
@click.option(
    "-f",
    "--filename",
    "names",
    multiple=True,
    required=True,
    help="A manifest, a directory of them, a glob, or - for standard input; may be repeated.",
)
@click.option("-R", "--recursive", is_flag=True, help="Directories within directories too.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would become of it, but write nothing.")
@click.option(
    "--validate",
    type=click.Choice(["strict", "warn", "ignore"]),
    default="strict",
    show_default=True,
    help="What to do about fields that a kind does not have.",
)
@click.option("--wait", "waits", is_flag=True, help="Wait for the DataVolumes, as cdi wait does.")
@click.option("--timeout", type=duration, help="With --wait: how long, e.g. 15m; for ever unless given.")
@click.option("-o", "--output", type=click.Choice(["name", "json", "yaml"]), help="Print the objects instead.")
@click.argument("more", nargs=-1)
def command(
    session: Session,
    *,
    names: tuple[str, ...],
    more: tuple[str, ...],
    recursive: bool,
    dry_run: bool,
    validate: str,
    waits: bool,
    timeout: float | None,
    output: str | None,
) -> None:
    """Apply manifests: create what is not there, change what is.

    All manifests are checked before anything is written.  A shell's expansion of a glob after -f is taken as it is
    meant: every file that follows belongs to it.
    """
    from cdi.runtime.manifests import load

    documents = load((*names, *more), recursive=recursive)
    if not documents:
        raise UsageError("there is no object in what was given", where=", ".join(names), remedy="check the file")
    strict = validate == "strict"
    applied = session.backend.apply(documents, namespace=session.namespace, dry_run=dry_run, strict=strict)
    for one in applied if validate == "warn" else ():
        for path in one.unknown:
            click.echo(printable(f"warning: {one.kind.lower()}/{one.name}: {path}: unknown field"), err=True)
    note = " (dry run)" if dry_run else ""
    if output in ("json", "yaml") and not dry_run:
        items = [session.backend.get(one.kind, one.namespace, one.name) for one in applied]
        click.echo(document(one_or_list(items), output))
    else:
        for one in applied:
            what = f"{one.kind.lower()}/{one.name}"
            click.echo(what if output else f"{what} {one.action}{note}")
    if waits and not dry_run:
        wait_for_all(
            session, [(one.namespace, one.name) for one in applied if one.kind == "DataVolume"], timeout=timeout
        )
