"""The ``cdi golden list``, ``describe`` and ``history`` commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from cdi.api.errors import CdiError
from cdi.api.origin import public_reference
from cdi.cli.golden_name import name_argument
from cdi.cli.session import Session, subcommand
from cdi.cli.show import age, document, echo_lines, printable, table, until

if TYPE_CHECKING:
    from cdi.api.dataimportcron import GoldenVersion
    from cdi.client.golden_view import Descendant, GoldenImage
    from cdi.store.base import Object

_OUTPUT = click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
_MAX_CELL = 100
"""Characters of an obstacle in the table; ``describe`` prints all of it."""


@subcommand("list")
@click.option("-A", "--all-namespaces", is_flag=True)
@_OUTPUT
def list_(session: Session, *, all_namespaces: bool, output: str) -> None:
    """List golden images: the version offered, the version wanted, polls, and what is in the way."""
    from cdi.client.golden_view import read

    bodies = session.backend.list("dataimportcron", None if all_namespaces else session.namespace)
    rows: list[list[str]] = []
    shown: list[dict[str, Any]] = []
    for body in bodies:
        metadata = body["metadata"]
        place = [str(metadata.get("namespace", ""))] if all_namespaces else []
        try:
            image = read(session.backend.store, body)
        except CdiError as error:  # one malformed object must not hide the others
            rows.append([*place, metadata["name"], "", "", "Invalid", "", "", error.what[:_MAX_CELL]])
            shown.append({"name": metadata["name"], "namespace": metadata.get("namespace"), "error": error.what})
            continue
        obstacle = next(image.obstacles(), "")
        rows.append(
            [
                *place,
                image.name,
                image.offered or "",
                image.wanted or "",
                image.state,
                until(image.next_poll),
                age(image.last_poll),
                obstacle if len(obstacle) <= _MAX_CELL else f"{obstacle[: _MAX_CELL - 1]}…",
            ]
        )
        shown.append(summary(image))
    if output != "text":
        click.echo(document(shown, output))
        return
    headers = ["NAME", "CURRENT", "WANTED", "STATE", "NEXT POLL", "LAST POLL", "IN THE WAY"]
    if not rows:
        where = "" if all_namespaces else f" in namespace {session.namespace!r}"
        click.echo(f"no golden images found{where}", err=True)
        return
    echo_lines(table([*(["NAMESPACE"] if all_namespaces else []), *headers], rows))


@subcommand("history")
@name_argument
@_OUTPUT
def history(session: Session, *, name: str, output: str) -> None:
    """Print the versions of a golden image, newest first, with their times and reasons."""
    from cdi.client.golden_view import get

    image = get(session.backend, session.namespace, name)
    if output != "text":
        click.echo(document([version_document(image, one) for one in image.versions], output))
        return
    if not image.versions:
        click.echo(f"golden image {image.namespace}/{image.name} has no versions yet", err=True)
        return
    rows = [
        [
            one.name,
            marked(image, one),
            one.found or "",
            one.imported or "",
            one.offered or "",
            one.message or one.reason or "",
        ]
        for one in image.versions
    ]
    echo_lines(table(["VERSION", "STATE", "FOUND", "IMPORTED", "OFFERED", "REASON"], rows))


@subcommand("describe")
@name_argument
@_OUTPUT
def describe(session: Session, *, name: str, output: str) -> None:
    """Print all about a golden image.

    Its versions with their verification, boot proof and record of origin, its channels, the volumes that descend from
    each version, and what is in the way of the newest one.
    """
    from cdi.client.golden_view import descendants, get, record_of

    image = get(session.backend, session.namespace, name)
    family = descendants(session.backend, image)
    records = {one.name: record_of(session.backend, image, one) for one in image.versions}
    if output != "text":
        versions = [
            {
                **version_document(image, one),
                "record": records[one.name],
                "volumes": [f"{it.namespace}/{it.name}" for it in family if it.version == one.name],
            }
            for one in image.versions
        ]
        click.echo(document({**summary(image), "channels": _channels(image), "versions": versions}, output))
        return
    events = session.backend.events(session.namespace, name, "dataimportcron")
    echo_lines(printable(line) for line in _lines(image, family, records, events))


def summary(image: GoldenImage) -> dict[str, Any]:
    """Return the facts of a row of ``cdi golden list`` as a document."""
    return {
        "name": image.name,
        "namespace": image.namespace,
        "dataSource": image.cron.spec.managed_data_source,
        "schedule": image.cron.spec.schedule,
        "current": image.offered,
        "wanted": image.wanted,
        "wantedDigest": image.wanted_digest,
        "state": image.state,
        "nextPoll": image.next_poll,
        "lastPoll": image.last_poll,
        "obstacles": list(image.obstacles()),
    }


def version_document(image: GoldenImage, version: GoldenVersion) -> dict[str, Any]:
    """Return a version as in the status, and whether it is the current one."""
    return {**version.to_dict(), "current": version.name == image.offered}


def marked(image: GoldenImage, version: GoldenVersion) -> str:
    """Return a version's state, with what else decides whether it is offered."""
    words = [version.state]
    if version.name == image.offered:
        words.append("current")
    if version.withheld:
        words.append("withheld")
    if version.deprecated:
        words.append("deprecated")
    words += [one.name for one in _status_channels(image) if one.version == version.name]
    return ", ".join(words)


def _status_channels(image: GoldenImage) -> Sequence[Any]:
    return (image.cron.status.channels if image.cron.status else None) or ()


def _channels(image: GoldenImage) -> list[dict[str, Any]]:
    return [one.to_dict() for one in _status_channels(image)]


def _lines(
    image: GoldenImage, family: Sequence[Descendant], records: dict[str, Any], events: Sequence[Object]
) -> Iterator[str]:
    spec = image.cron.spec
    for label, text in (
        ("Name", image.name),
        ("Namespace", image.namespace),
        ("DataSource", spec.managed_data_source),
        ("Source", _source(image)),
        ("Schedule", spec.schedule or "none: it is never polled"),
        ("Last poll", _moment(image.last_poll, "never")),
        ("Next poll", f"{image.next_poll} (in {until(image.next_poll)})" if image.next_poll else "none"),
        ("Wanted", f"{image.wanted} ({image.wanted_digest})" if image.wanted else "unknown, no poll has succeeded yet"),
        ("Current", image.offered or "none"),
        ("State", image.state),
    ):
        yield f"{label + ':':<14}{text}"
    obstacles = [text for text in image.obstacles() if text]
    if obstacles:
        yield "In the way:"
        yield from (f"  - {text}" for text in obstacles)
    channels = _status_channels(image)
    if channels:
        yield "Channels:"
        rows = [[one.name, one.version or "", one.since or ""] for one in channels]
        yield from (f"  {line}" for line in table(["DATASOURCE", "VERSION", "SINCE"], rows))
    if image.versions:
        yield "Versions:"
    for version in image.versions:
        yield from (
            f"  {line}" for line in _version(image, version, family, recorded=records[version.name] is not None)
        )
    if events:
        yield "Events:"
        rows = [
            [str(e.get("type", "")), str(e.get("reason", "")), age(e.get("lastTimestamp")), str(e.get("message", ""))]
            for e in events
        ]
        yield from (f"  {line}" for line in table(["TYPE", "REASON", "AGE", "MESSAGE"], rows))


def _version(
    image: GoldenImage, version: GoldenVersion, family: Sequence[Descendant], *, recorded: bool
) -> Iterator[str]:
    yield f"{version.name}: {marked(image, version)}"
    proof = version.proof
    proof_text = None
    if proof is not None:
        how = f" ({proof.accelerator})" if proof.accelerator else ""
        proof_text = (
            f"{'booted' if proof.booted else 'did not boot'}{how}{f': {proof.message}' if proof.message else ''}"
        )
    volumes = [f"{one.namespace}/{one.name}" for one in family if one.version == version.name]
    for label, text in (
        ("Digest", version.digest),
        ("Source", public_reference(version.source or "")),
        ("Architecture", version.architecture),
        ("Found", version.found),
        ("Imported", version.imported),
        ("Offered", version.offered),
        ("Verified by", ", ".join(version.verified_by or ())),
        ("Boot proof", proof_text),
        ("Record", "kept; -o json prints it" if recorded else None),
        ("Deprecated", version.deprecated),
        ("End of life", version.end_of_life),
        ("Reason", version.message or version.reason),
        ("Volumes", ", ".join(volumes)),
    ):
        if text:
            yield f"  {label + ':':<14}{text}"


def _source(image: GoldenImage) -> str:
    source = image.cron.spec.template.spec.source
    for kind, body in (source.to_dict() if source is not None else {}).items():
        names = body if isinstance(body, dict) else {}
        text = public_reference(str(names.get("url") or "")) or names.get("imageStream") or names.get("name") or ""
        return f"{kind} {text}".strip()
    return "none"


def _moment(text: str | None, missing: str) -> str:
    return f"{text} ({age(text)} ago)" if text else missing
