"""The ``cdi inspect`` command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from cdi.api.errors import NotFound
from cdi.api.kinds import kind_named
from cdi.cli.access import access_options, request_of, stored_secret
from cdi.cli.bars import progress_command
from cdi.cli.session import Session, subcommand
from cdi.cli.show import document, echo_lines, paint, printable, table
from cdi.explain import inspect
from cdi.explain.findings import Findings
from cdi.image.sizes import format_size


@subcommand("inspect")
@click.argument("image", metavar="IMAGE|URL|-")
@click.option(
    "--digest", is_flag=True, help="Read everything: print the source's sha256, and the size of compressed content."
)
@click.option(
    "--content-type",
    type=click.Choice(["kubevirt", "archive"]),
    default="kubevirt",
    help="Select the content: a disk, or a tar archive.",
)
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
@access_options
def command(session: Session, *, image: str, digest: bool, content_type: str, output: str, **options: Any) -> None:
    """Report what an image is and whether it is safe: format, sizes, and every check by name.

    IMAGE is a file, a URL (http, https, s3, gs, docker, oci-archive) or - for standard input.  If an import would
    reject the image, the exit status is that of the rejection, after the checks are printed.
    """
    if session.in_cluster and _is_volume(image):
        session.here("cdi inspect of a volume", "see what was imported with cdi describe pvc/NAME")
    request = request_of(image, options, content_type=content_type)
    with progress_command(request.place.name or "image", always=digest) as show:
        found = inspect.inspect(request, digest=digest, secret=stored_secret(session, request), on_progress=show)
    body = inspect.document(found, request.place.location)
    if output == "table":
        echo_lines(lines(found, body))
    else:
        click.echo(document(body, output))
    if found.refusal is not None:
        raise found.refusal


def _is_volume(word: str) -> bool:
    kind, slash, name = word.partition("/")
    with contextlib.suppress(NotFound):
        return bool(slash and name) and kind_named(kind).plural in ("datavolumes", "persistentvolumeclaims")
    return False


def lines(found: Findings, body: dict[str, Any]) -> Iterator[str]:
    """Yield the text output: the facts, then the checks."""
    known = [("image", body["location"]), *_facts(found)]
    width = max(len(name) for name, _ in known) + 2
    for name, value in known:
        yield printable(f"{name + ':':<{width}}{value}")
    yield from checks(found)


def checks(found: Findings) -> Iterator[str]:
    """Yield a table of the checks."""
    if not found.checks:
        return
    yield ""
    head, *rows = table(
        ("CHECK", "RESULT", "DETAIL"), [(c.name, "pass" if c.passed else "FAIL", c.detail) for c in found.checks]
    )
    yield head
    for check, row in zip(found.checks, rows, strict=True):
        yield row if check.passed else paint(row, "red")


def size(count: int | None) -> str:
    return "unknown until the whole source is read" if count is None else f"{format_size(count)} ({count} bytes)"


def _facts(found: Findings) -> Iterator[tuple[str, str]]:
    facts, image, container = found.facts, found.image, found.container
    if found.redirected is not None:
        yield "redirected to", found.redirected
    if container is not None:
        yield "image digest", str(container.digest)
        yield "architecture", container.architecture or "not specified"
        yield "disk in layer", f"{found.layer or 'none'} of {container.layers}"
        for name, value in sorted(container.labels.items()):
            yield "label", f"{name}={value}"
    if image is not None:
        words = [image.variant or "", f"version {image.version}" if image.version else "", image.compression or ""]
        told = ", ".join(word for word in words if word)
        yield "format", f"{image.format} ({told})" if told else image.format
    elif found.archive:
        yield "format", "tar archive"
    if found.wrappers and not (found.archive and found.wrappers == ("tar",)):
        yield "wrapped in", ", in ".join(reversed(found.wrappers))
    if image is not None:
        yield "virtual size", size(found.virtual_size)
        if found.data_bytes is not None:
            yield "data", size(found.data_bytes)
        if image.cluster_size:
            yield "cluster size", format_size(image.cluster_size)
        yield from image.details
        for note in image.notes:
            yield "note", note
        for reason in image.needs_qemu:
            yield "read by QEMU", reason
    if facts is not None:
        yield "length", size(facts.length) if facts.length is not None else "not reported by the source"
        yield "byte ranges", "yes" if facts.ranges else "no"
        if facts.validator:
            yield "validator", facts.validator
        for promised in facts.digests:
            yield "promised", str(promised)
    if found.digest is not None:
        yield "digest", str(found.digest)
