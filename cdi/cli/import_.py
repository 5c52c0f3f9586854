"""The ``cdi import`` command."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cdi.api.errors import CdiError, OutputFailed, UsageError
from cdi.api.job import Outcome, Progress
from cdi.cli import bars
from cdi.cli.access import access_options, read_wishes, request_of, stored_secret, wish_options
from cdi.cli.bars import progress_command
from cdi.cli.options import duration
from cdi.cli.session import Session, subcommand
from cdi.cli.show import document
from cdi.cli.wait import phase_text, summary, wait_for
from cdi.client.request import Request
from cdi.explain.find_size import find_size, find_size_for_cluster, is_pipe, name_of
from cdi.explain.peek import PeekedPipe


@subcommand("import")
@click.argument("image", metavar="URL|PATH|-")
@click.option("--name", help="Set the name of the DataVolume; default: derived from the URL.")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    help="Import into this file or block device, without a DataVolume.",
)
@click.option("--force", is_flag=True, help="With --to: replace an existing file.")
@click.option(
    "--wait/--no-wait", "waits", default=True, help="Wait for the import to finish (the default), or only start it."
)
@click.option("--timeout", type=duration, help="Wait at most this long, e.g. 15m; the import continues.")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Print the outcome in this format.")
@wish_options
@access_options
def command(
    session: Session,
    *,
    image: str,
    name: str | None,
    target: Path | None,
    force: bool,
    waits: bool,
    timeout: float | None,
    output: str | None,
    **options: Any,
) -> None:
    """Import one image: http, https, s3, gs, docker and oci-archive URLs, files, and - for standard input.

    Creates a DataVolume and waits for it.  After Ctrl-C the import continues in the background.  A cluster fetches the
    image itself; without --size, this machine reads the image's size first.  With --to the image is written to a file
    or block device instead; run the same command again to resume an interrupted import.
    """
    wishes = read_wishes(options)
    request = request_of(image, options, **wishes)
    if target is not None:
        session.here("--to", "omit --to, and use the volume that the cluster creates")
        _refuse_unused(name=name, wait=not waits, timeout=timeout)
        _import_to(session, request, target, force=force, output=output)
        return
    if force:
        raise UsageError("--force requires --to", remedy="delete an existing volume with cdi delete dv/NAME")
    _import(session, request, name_of(request, name), waits=waits, timeout=timeout, output=output)


def _refuse_unused(*, name: str | None, wait: bool, timeout: float | None) -> None:
    for option, given in (("--name", name is not None), ("--no-wait", wait), ("--timeout", timeout is not None)):
        if given:
            raise UsageError(f"{option} applies to a DataVolume, and --to creates none", remedy="omit one of them")


def _import_to(session: Session, request: Request, target: Path, *, force: bool, output: str | None) -> None:
    from cdi.local.import_to_path import import_to_path

    secret = stored_secret(session, request)
    session.after_interrupt = (
        "run it again with the same input, from its beginning"
        if request.place.kind == "stdin"
        else "run the same command again to resume"
    )
    with bars.bar(str(target.name or target)) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.phase, progress)

        outcome = import_to_path(session.embedded.home, request, target, replace=force, secret=secret, on_progress=show)
    session.after_interrupt = None
    bars.done(str(target), f"done {summary(outcome)}".rstrip())
    _warn(outcome)
    if output is not None:
        click.echo(document({"path": str(target), "outcome": asdict(outcome)}, output))


def _import(
    session: Session, request: Request, name: str, *, waits: bool, timeout: float | None, output: str | None
) -> None:
    from cdi.local.submit import submit

    namespace = session.namespace
    with contextlib.ExitStack() as stack:
        size, stream = request.size, None
        if size is None and session.in_cluster and request.place.fetched:
            size = _find_size_of_cluster(session, request, name)
        elif size is None and not session.in_cluster:
            pipe = stack.enter_context(PeekedPipe(0)) if is_pipe(request) else None
            size = _find_size(session, request, name, pipe)
            stream = pipe.flow() if pipe is not None else None
        began = submit(session.backend, request, namespace, name, size or 0, stream=stream)
        try:
            if output is None:
                click.echo(f"datavolume/{name} {'created' if began else 'unchanged'}")
            if waits:
                wait_for(session, namespace, name, timeout=timeout)
        except KeyboardInterrupt:
            _give_up_stream(session, request, name)
            raise
        except OutputFailed as error:
            if stream is None:
                raise
            # This process carries the pipe's content, and it is about to end.
            _give_up_stream(session, request, name)
            raise type(error)(error.what, remedy=session.after_interrupt) from error
    outcome = session.backend.outcome(namespace, name)
    if outcome is not None:
        _warn(outcome)
    if output is not None:
        body = session.backend.get("dv", namespace, name)
        here = waits and not session.in_cluster
        volume = str(session.embedded.volume_path(namespace, name)) if here else None
        told = {
            "namespace": namespace,
            "name": name,
            "phase": phase_text(body),
            "volume": volume,
            "outcome": None if outcome is None else asdict(outcome),
        }
        click.echo(document(told, output))


def _find_size(session: Session, request: Request, name: str, pipe: PeekedPipe | None) -> int:
    with progress_command(name, always=True) as show:
        home = session.embedded.home
        return find_size(home, request, session.namespace, name, pipe=pipe, on_progress=show)


def _find_size_of_cluster(session: Session, request: Request, name: str) -> int:
    with progress_command(name, always=True) as show:
        return find_size_for_cluster(request, stored_secret(session, request), on_progress=show)


def _give_up_stream(session: Session, request: Request, name: str) -> None:
    """Delete the DataVolume of an interrupted import from standard input.

    Ctrl-C reaches the process that writes into the pipe as well, so the end of the input is not the end of the image
    and the import must not complete.
    """
    if request.place.kind != "stdin":
        return
    session.after_interrupt = "run it again with the same input, from its beginning; the partial import was removed"
    try:
        session.embedded.delete("dv", session.namespace, name)
    except CdiError as error:
        session.after_interrupt = f"cdi delete dv/{name}; it could not be deleted: {error.what}"


def _warn(outcome: Outcome) -> None:
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
