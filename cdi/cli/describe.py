"""The ``cdi describe`` command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from cdi.api.annotations import APPLIED
from cdi.api.errors import UsageError
from cdi.api.job import Outcome, Progress
from cdi.cli.session import Session, references, subcommand
from cdi.cli.show import age, document, duration, echo_lines, printable, rate, table
from cdi.image.sizes import format_size
from cdi.store.base import Object

_HIDDEN = ("last-applied-configuration", APPLIED.key)


@subcommand("describe")
@click.argument("what", nargs=-1, required=True)
def command(session: Session, *, what: tuple[str, ...]) -> None:
    """Print details of objects: spec, status, conditions with their reasons, and events.

    For a DataVolume also print its worker's progress and outcome, and the path of its disk; in a cluster its PVC, its
    worker pod, and what blocks that.
    """
    for index, (plural, name) in enumerate(references(what)):
        names = (
            [name]
            if name is not None
            else [item["metadata"]["name"] for item in session.backend.list(plural, session.namespace)]
        )
        if not names:
            raise UsageError(
                f"no {plural} found in namespace {session.namespace!r}", remedy=f"list all with cdi get {plural} -A"
            )
        for offset, one in enumerate(names):
            if index or offset:
                click.echo()
            echo_lines(printable(line) for line in _lines(session, plural, one))


def _lines(session: Session, plural: str, name: str) -> Iterator[str]:
    backend = session.backend
    body = backend.get(plural, session.namespace, name)
    metadata = body["metadata"]
    yield f"Name:         {metadata['name']}"
    if metadata.get("namespace"):
        yield f"Namespace:    {metadata['namespace']}"
    yield f"Kind:         {body['kind']}"
    yield f"Created:      {metadata.get('creationTimestamp', '')} ({age(metadata.get('creationTimestamp'))} ago)"
    for field in ("labels", "annotations"):
        shown = {k: v for k, v in (metadata.get(field) or {}).items() if not k.endswith(_HIDDEN)}
        yield from _section(field.capitalize(), shown)
    for owner in metadata.get("ownerReferences") or []:
        yield f"Owner:        {owner['kind'].lower()}/{owner['name']}"
    if body["kind"] == "Secret":
        yield from _section("Data", {key: f"{_decoded(text)} bytes" for key, text in (body.get("data") or {}).items()})
    else:
        yield from _section("Spec", body.get("spec"))
        yield from _section("Data", body.get("data"))
    status = dict(body.get("status") or {})
    conditions = status.pop("conditions", None) or []
    yield from _section("Status", status)
    yield from _conditions(conditions)
    if body["kind"] == "DataVolume":
        yield from _course(session, body)
    if body["kind"] in ("DataVolume", "PersistentVolumeClaim"):
        for title, pairs in backend.about(body):
            yield from _about(title, pairs)
    yield from _events(backend.events(session.namespace, name, plural))


def _decoded(text: str) -> int:
    """Return the approximate number of bytes that a base64 text encodes."""
    return max(0, len(text) * 3 // 4 - text.count("="))


def _section(title: str, body: Any) -> Iterator[str]:
    if body:
        yield f"{title}:"
        yield from (f"  {line}" for line in document(body, "yaml").splitlines())


def _conditions(conditions: list[dict[str, Any]]) -> Iterator[str]:
    if not conditions:
        return
    yield "Conditions:"
    rows = [
        (*_texts(c, "type", "status"), age(c.get("lastTransitionTime")), *_texts(c, "reason", "message"))
        for c in conditions
    ]
    yield from (f"  {line}" for line in table(("TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"), rows))


def _texts(body: dict[str, Any], *fields: str) -> tuple[str, ...]:
    return tuple("" if body.get(field) is None else str(body[field]) for field in fields)


def _about(title: str, pairs: list[tuple[str, str]]) -> Iterator[str]:
    """Yield a section; a single fact without a name goes on the title's line."""
    if len(pairs) == 1 and not pairs[0][0]:
        yield f"{title + ':':<14}{pairs[0][1]}"
        return
    yield f"{title}:"
    yield from _pairs(iter(pairs))


def _course(session: Session, body: Object) -> Iterator[str]:
    outcome = session.backend.outcome(session.namespace, body["metadata"]["name"])
    progress = session.backend.progress_of(body)
    if outcome is None and isinstance(progress, Progress):
        yield "Progress:"
        yield from _pairs(_progress(progress))
    if outcome is not None:
        yield "Outcome:"
        yield from _pairs(_outcome(outcome))
        for warning in outcome.warnings:
            yield f"  Warning: {warning}"


def _pairs(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    for name, text in pairs:
        if text:
            yield f"  {name + ':':<14}{text}"


def _progress(progress: Progress) -> Iterator[tuple[str, str]]:
    yield "Phase", progress.phase
    total = f" of {format_size(progress.total)} ({100 * (progress.fraction or 0):.1f}%)" if progress.total else ""
    yield "Done", f"{format_size(progress.done)}{total}"
    yield "Rate", rate(progress.rate) if progress.rate else ""
    yield "Remaining", duration(progress.eta) if progress.eta else ""
    yield "Fetched", format_size(progress.fetched)
    yield "Written", format_size(progress.written)
    yield "Note", progress.note


def _outcome(outcome: Outcome) -> Iterator[tuple[str, str]]:
    if outcome.failure is not None:
        yield "Failed", f"{outcome.failure.code}: {outcome.failure.message}"
    yield "Format", " in ".join((outcome.format or "", *reversed(outcome.wrappers)))
    yield "Path", outcome.path or ""
    yield "Virtual size", format_size(outcome.virtual_size) if outcome.virtual_size is not None else ""
    yield "Disk size", format_size(outcome.disk_size) if outcome.disk_size is not None else ""
    yield "Digest", outcome.digest or ""
    yield "Verified by", ", ".join(outcome.verified_by)
    yield "Validator", outcome.validator or ""
    if outcome.fetched or outcome.written:
        yield "Fetched", format_size(outcome.fetched)
        yield "Written", format_size(outcome.written)
        yield "Scratch", format_size(outcome.scratch)
    yield "Resumed at", format_size(outcome.resumed_at) if outcome.resumed_at else ""
    yield "Preallocated", "yes" if outcome.preallocated else ""
    yield "Took", f"{outcome.seconds:.1f}s" if outcome.seconds else ""


def _events(events: list[Object]) -> Iterator[str]:
    if not events:
        return
    yield "Events:"
    rows = [(*_texts(e, "type", "reason"), age(e.get("lastTimestamp")), *_texts(e, "count", "message")) for e in events]
    yield from (f"  {line}" for line in table(("TYPE", "REASON", "AGE", "COUNT", "MESSAGE"), rows))
