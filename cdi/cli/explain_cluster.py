"""``cdi explain`` against a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cdi.api.errors import NotFound
from cdi.api.names import ANN_IMMEDIATE_BINDING
from cdi.cli.explain_cron import stand_ins
from cdi.cli.session import Session
from cdi.cli.show import document, echo_lines, paint, printable

if TYPE_CHECKING:
    from cdi.client.request import Request
    from cdi.client.with_progress import OnProgress
    from cdi.explain.result import Explanation
    from cdi.store.base import Object

_ANY = 1 << 30
"""Placeholder size in bytes: a DataVolume must request one, and this one is not evaluated."""


def explain_manifests(
    session: Session, names: tuple[str, ...], stored: list[Object], show: OnProgress
) -> Iterator[Explanation]:
    """Explain the DataVolumes and DataImportCrons in manifests, and those DataImportCrons that exist.

    The Secrets and ConfigMaps in the manifests are treated as if they were applied.
    """
    from cdi.api.kinds import CONFIG_MAPS, SECRETS, resource_of
    from cdi.client.apply import check
    from cdi.client.manifests import load
    from cdi.explain.cluster import explain
    from cdi.explain.live_reader import LiveReader

    documents = load(names) if names else []
    checked = check(session.remote.store, documents, namespace=session.namespace, in_cluster=True)
    lookups = LiveReader(session.remote.calls)
    datavolumes: list[Object] = []
    for body, _ in checked:
        if body["kind"] == "DataVolume":
            datavolumes.append(body)
        elif (resource := resource_of(body["apiVersion"], body["kind"])) in (SECRETS, CONFIG_MAPS):
            identity = {"uid": "explained", "resourceVersion": "explained"}
            lookups.set(resource, {**body, "metadata": {**body["metadata"], **identity}})
    crons = stand_ins(session, [*(body for body, _ in checked), *stored])
    if not datavolumes and not crons:
        raise NotFound(
            "the manifests contain no DataVolume and no DataImportCron",
            where=", ".join(names),
            remedy="check the file",
        )
    for body in datavolumes:
        yield explain(lookups, body, on_progress=show)
    for body, facts in crons:
        body["metadata"].setdefault("annotations", {})[ANN_IMMEDIATE_BINDING] = "true"
        yield explain(lookups, body, cron=facts, on_progress=show)


def explain_request(session: Session, request: Request, name: str | None, show: OnProgress) -> Explanation:
    """Explain the DataVolume that ``cdi import`` would create for a URL."""
    from cdi.api.kinds import resource_of
    from cdi.client.request_to_manifests import build_manifests
    from cdi.explain.cluster import explain
    from cdi.explain.live_reader import LiveReader
    from cdi.local.submit import refuse_local

    refuse_local(request)
    name = name or request.place.name or "image"
    wanted = build_manifests(request, session.namespace, name, request.size or _ANY, local=False)
    lookups = LiveReader(session.remote.calls)
    for body in wanted.inputs:
        identity = {"uid": "explained", "resourceVersion": "explained"}
        lookups.set(
            resource_of(body["apiVersion"], body["kind"]), {**body, "metadata": {**body["metadata"], **identity}}
        )
    return explain(lookups, wanted.datavolume, sized=request.size is not None, on_progress=show)


def diagnose(session: Session, name: str, output: str) -> None:
    """Show why a DataVolume makes no progress, or that it does.

    Raises:
        CdiError: the DataVolume has failed; this is its error.
    """
    from cdi.cli.explain_clone import clone_lines
    from cdi.client.status_view import error_of, failure_of, phase_of
    from cdi.explain.clone_facts import clone_facts
    from cdi.explain.result import clone_document
    from cdi.remote.diagnose import CLONING, blocker_of

    body = session.backend.get("dv", session.namespace, name)
    found = session.remote.filling(session.namespace, name)
    claims = [claim for claim in (found.claim, found.prime) if claim is not None]
    events = [event for claim in claims for event in session.remote.events_of(claim)]
    blocker = blocker_of(body, found, events)
    failure = failure_of(body)
    phase = phase_of(body).value or "not reconciled yet"
    clone = clone_facts(found.claim)
    going = blocker is not None and blocker.passes and phase_of(body) in CLONING
    if output != "text":
        told = None if blocker is None or going else {
            "reason": blocker.reason, "message": blocker.message, "remedy": blocker.remedy or None
        }  # fmt: skip
        about = {"kind": "DataVolume", "namespace": session.namespace, "name": name, "phase": phase}
        how = clone_document(clone)
        click.echo(document({**about, "clone": how, "waits": told, "failed": failure is not None}, output))
    else:
        echo_lines([f"datavolume:  {session.namespace}/{name}", f"phase:       {phase}"])
        progress = (body.get("status") or {}).get("progress")
        echo_lines([f"progress:    {printable(str(progress))}"] if progress else [])
        echo_lines([f"worker:      {printable(found.pod['metadata']['name'])}"] if found.pod is not None else [])
        known = [] if clone is None else list(clone_lines(clone))
        echo_lines([printable(f"{name + ':':<13}{text}") for name, text in known])
        click.echo("")
        if blocker is not None and going:
            click.echo(paint(printable(f"It is in progress: {blocker.message}"), "green"))
        elif blocker is None:
            click.echo(paint("It has succeeded." if phase == "Succeeded" else "It is in progress.", "green"))
        else:
            colour = "red" if failure is not None else "yellow"
            click.echo(paint(printable(f"It {'fails' if failure is not None else 'waits'}: {blocker}"), colour))
    if failure is not None:
        raise error_of(failure)
