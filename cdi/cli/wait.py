"""The ``cdi wait`` command, and waiting with a bar for commands that start an import."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import click

from cdi.api.errors import UsageError
from cdi.api.job import Outcome
from cdi.api.phases import Phase
from cdi.cli import bars
from cdi.cli.options import duration
from cdi.cli.session import Session, references, subcommand
from cdi.cli.show import duration as words_of
from cdi.cli.show import rate
from cdi.client.backend import Advance
from cdi.client.status_view import blocked_reason
from cdi.client.wait import wait
from cdi.image.sizes import format_size
from cdi.store.base import Object

_JSONPATH = re.compile(r"jsonpath='?\{?\.status\.phase\}?'?=(\w+)", re.IGNORECASE)


@subcommand("wait")
@click.argument("what", nargs=-1, required=True)
@click.option(
    "--for",
    "until",
    default="phase=Succeeded",
    show_default=True,
    help="Wait for phase=PHASE, condition=TYPE, delete, or jsonpath={.status.phase}=PHASE as with kubectl.",
)
@click.option("--timeout", type=duration, help="Wait at most this long, e.g. 15m; default: no limit.")
@click.option(
    "--patient", is_flag=True, help="Keep waiting after failures that only a user can resolve, e.g. a wrong password."
)
def command(session: Session, *, what: tuple[str, ...], until: str, timeout: float | None, patient: bool) -> None:
    """Wait for DataVolumes (dv/NAME …), showing progress.

    Exits 0 when all are Succeeded, with the failure's exit status when one cannot succeed, 8 when the timeout expires.
    Ctrl-C stops waiting; the import continues.
    """
    wanted = _until(until)
    names = [(plural, name) for plural, name in references(what, kind="dv") if name is not None]
    if any(plural != "datavolumes" for plural, _ in names) and wanted != "deleted":
        raise UsageError("only DataVolumes can be waited for", remedy="give dv/NAME")
    deadline = None if timeout is None else time.monotonic() + timeout
    for plural, name in names:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        wait_for(session, session.namespace, name, kind=plural, until=wanted, timeout=left, patient=patient)


def wait_for_all(session: Session, names: Sequence[tuple[str, str]], *, timeout: float | None) -> None:
    """Wait for each (namespace, name) in turn, within one timeout in seconds; the imports run in parallel.

    Raises what `wait_for` raises.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    for namespace, name in names:
        wait_for(session, namespace, name, timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))


def wait_for(
    session: Session,
    namespace: str | None,
    name: str,
    *,
    kind: str = "dv",
    until: str = Phase.SUCCEEDED,
    timeout: float | None = None,
    patient: bool = False,
) -> Object:
    """Wait with a bar, print a final line, and return the object as last seen.

    Raises what `cdi.client.wait.wait` raises: in particular the failure of a DataVolume and, unless `patient`, a
    blocked state that only an administrator or user can resolve.
    """
    session.resume_hint(name)
    with bars.bar(name) as bar:

        def show(body: Object, advance: Advance | None) -> None:
            if until == "deleted":
                bar.update("Terminating", None)
            else:
                bar.update(phase_text(body), advance, blocked_reason(body))

        body = wait(session.backend, kind, namespace, name, until, timeout, show, patient=patient)
    if until == "deleted":
        bars.done(name, "deleted")
    else:
        outcome = session.backend.outcome(namespace, name) if kind in ("dv", "datavolumes") else None
        phase = phase_text(body)
        bars.done(name, f"{phase} {summary(outcome)}".rstrip() if phase == Phase.SUCCEEDED else phase)
    session.after_interrupt = None
    return body


def phase_text(body: Object) -> str:
    return str((body.get("status") or {}).get("phase") or Phase.PENDING)


def summary(outcome: Outcome | None) -> str:
    """Return one line about a worker's result.

    For example ``(qcow2, 2 GiB, 1.2 GiB fetched in 12s, 100 MiB/s, verified by SHA256SUMS)``.
    """
    if outcome is None or outcome.failure is not None:
        return ""
    words = ["+".join((outcome.format or "", *reversed(outcome.wrappers)))] if outcome.format else []
    if outcome.disk_size is not None:
        words.append(format_size(outcome.disk_size))
    if outcome.fetched:
        fetched = f"{format_size(outcome.fetched)} fetched in {words_of(outcome.seconds)}"
        words.append(fetched + (f", {rate(outcome.fetched / outcome.seconds)}" if outcome.seconds >= 1 else ""))
    if outcome.resumed_at:
        words.append(f"resumed at {format_size(outcome.resumed_at)}")
    if outcome.verified_by:
        words.append(f"verified by {', '.join(outcome.verified_by)}")
    return f"({', '.join(words)})" if words else ""


def _until(text: str) -> str:
    """Convert a ``--for`` value to the condition that `cdi.client.wait.wait` takes."""
    if text in ("delete", "deleted"):
        return "deleted"
    kind, _, word = text.partition("=")
    if found := _JSONPATH.fullmatch(text):
        kind, word = "phase", found[1]
    if kind == "phase":
        phases = {phase.lower(): phase for phase in map(str, Phase)}
        if word.lower() not in phases:
            raise UsageError(
                f"{word!r} is not a phase", remedy=f"use one of {', '.join(filter(None, map(str, Phase)))}"
            )
        return phases[word.lower()]
    if kind == "condition":
        word, _, value = word.partition("=")
        conditions = {"ready": "Ready", "bound": "Bound", "running": "Running"}
        if word.lower() in conditions and value.lower() in ("", "true"):
            return conditions[word.lower()]
    raise UsageError(f"{text!r} cannot be waited for", remedy="use --for phase=Succeeded, condition=Ready or delete")
