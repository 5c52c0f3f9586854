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
    help="Read this manifest, directory or glob, or - for standard input; may be repeated.",
)
@click.option("-R", "--recursive", is_flag=True, help="Read subdirectories too.")
@click.option("--dry-run", is_flag=True, help="Validate everything and print what would change, but write nothing.")
@click.option(
    "--validate",
    type=click.Choice(["strict", "warn", "ignore"]),
    default="strict",
    show_default=True,
    help="Select how unknown fields are handled.",
)
@click.option("--wait", "waits", is_flag=True, help="Wait for the DataVolumes, as cdi wait does.")
@click.option("--timeout", type=duration, help="With --wait: wait at most this long, e.g. 15m; default: no limit.")
@click.option("-o", "--output", type=click.Choice(["name", "json", "yaml"]), help="Print the objects in this format.")
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
    """Apply manifests: create objects that do not exist, and update those that do.

    All manifests are validated before anything is written.  A glob after -f may be expanded by the shell: every file
    that follows is read too.
    """
    from cdi.client.manifests import load

    documents = load((*names, *more), recursive=recursive)
    if not documents:
        raise UsageError("the manifests contain no object", where=", ".join(names), remedy="check the file")
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
