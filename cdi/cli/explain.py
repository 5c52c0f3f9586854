"""The ``cdi explain`` command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from cdi.api.errors import CdiError, NotFound, UsageError
from cdi.api.kinds import kind_named
from cdi.cli.access import access_options, read_wishes, request_of, wish_options
from cdi.cli.bars import progress_command
from cdi.cli.explain_clone import clone_lines
from cdi.cli.explain_cluster import diagnose, explain_manifests, explain_request
from cdi.cli.explain_cron import cron_lines, stand_ins
from cdi.cli.inspect import checks as check_table
from cdi.cli.inspect import size as words_of_size
from cdi.cli.session import Session, subcommand
from cdi.cli.show import document, echo_lines, paint, printable
from cdi.client.with_progress import OnProgress
from cdi.explain import result
from cdi.explain.local import explain
from cdi.explain.local import explain_request as explain_local_request
from cdi.explain.local_overlay import LocalOverlay
from cdi.explain.result import MEMORY, Explanation
from cdi.image.plan import render
from cdi.image.sizes import format_size
from cdi.store.base import Key


@subcommand("explain")
@click.argument("what", metavar="[dv/NAME|dic/NAME|URL|PATH|-]", required=False)
@click.option(
    "-f",
    "--filename",
    "names",
    multiple=True,
    help="Explain the DataVolumes and DataImportCrons in these manifests; may be repeated.",
)
@click.option("--name", help="Set the name of the DataVolume that cdi import would create.")
@click.option("-v", "--verbose", is_flag=True, help="Print all checks, also those that passed.")
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@wish_options
@access_options
def command(
    session: Session,
    *,
    what: str | None,
    names: tuple[str, ...],
    name: str | None,
    verbose: bool,
    output: str,
    **options: Any,
) -> None:
    """Predict an import without running it: whether it will succeed, by which pipeline, at what cost.

    Explains manifests (-f), an applied DataVolume (dv/NAME), or a URL or file with the options of cdi import.  If the
    import would be rejected, the exit status is that of the rejection.  No volume is written.  For a DataVolume in a
    cluster the command reports why it makes no progress.  For a DataImportCron (-f or dic/NAME) the source is polled:
    what it offers now, when it will be polled, and what an import would cost.
    """
    if bool(what) == bool(names):
        raise UsageError("give exactly one of -f FILE, dv/NAME or a URL", remedy="cdi explain -f FILE")
    applied, cron = _applied(what, "datavolumes"), _applied(what, "dataimportcrons")
    if session.in_cluster and applied is not None:
        _refuse_options(click.get_current_context())
        diagnose(session, applied, output)
        return
    with progress_command("explain", always=False) as show:
        if names or applied is not None or cron is not None:
            _refuse_options(click.get_current_context())
            found = list(_of_objects(session, names, applied, cron, show))
        else:
            assert what is not None
            wishes = read_wishes(options)
            request = request_of(what, options, **wishes)
            if session.in_cluster:
                found = [explain_request(session, request, name, show)]
            else:
                found = [
                    explain_local_request(session.embedded.home, request, session.namespace, name, on_progress=show)
                ]
    if output == "text":
        for number, explanation in enumerate(found):
            echo_lines([""] * bool(number) + list(lines(explanation, verbose=verbose)))
    else:
        bodies = [result.document(explanation) for explanation in found]
        click.echo(document(bodies[0] if len(bodies) == 1 else bodies, output))
    for explanation in found:
        if explanation.refusal is not None:
            raise explanation.refusal


def _applied(what: str | None, plural: str) -> str | None:
    """Return the name in ``KIND/NAME`` for an object of this kind, or None."""
    kind, slash, name = (what or "").partition("/")
    with suppress(CdiError):
        if slash and name and kind_named(kind).plural == plural:
            return name
    return None


def _refuse_options(context: click.Context) -> None:
    """Reject import options beside manifests: a manifest has fields for them.

    Raises:
        UsageError: such an option was given.
    """
    own = {"what", "names", "verbose", "output"}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if parameter.name in own or not parameter.expose_value or not given:
            continue
        raise UsageError(f"{parameter.opts[0]} applies only to a URL or path", remedy="set it in the manifest")


def _of_objects(
    session: Session, names: tuple[str, ...], applied: str | None, cron: str | None, show: OnProgress
) -> Iterator[Explanation]:
    from cdi.client.apply import check
    from cdi.client.manifests import load

    stored = [session.store.get(Key.of("dic", session.namespace, cron))] if cron is not None else []
    if session.in_cluster:
        yield from explain_manifests(session, names, stored, show)
        return
    home = session.embedded.home
    if applied is not None:
        with LocalOverlay.open(home) as overlay:
            yield explain(overlay, Key.of("dv", session.namespace, applied), on_progress=show)
        return
    documents = load(names) if names else []
    bodies = [body for body, _ in check(session.store, documents, namespace=session.namespace)]
    crons = stand_ins(session, [*bodies, *stored])
    facts = {Key.of_object(body): explanation for body, explanation in crons}
    volumes = [body for body, _ in crons]
    with LocalOverlay.open(home) as overlay:
        keys = overlay.apply([*documents, *volumes], namespace=session.namespace)
        if not keys:
            raise NotFound(
                "the manifests contain no DataVolume and no DataImportCron",
                where=", ".join(names),
                remedy="check the file",
            )
        for key in keys:
            yield explain(overlay, key, cron=facts.get(key), on_progress=show)


# --- text output ---


def lines(explanation: Explanation, *, verbose: bool = False) -> Iterator[str]:
    if explanation.cron is not None:
        known = [*cron_lines(explanation.cron), *_known(explanation)]
    else:
        known = [("datavolume", str(explanation.dry_run.key).removeprefix("datavolume ")), *_known(explanation)]
    if explanation.plan is not None:
        plan = [line.partition(":") for line in render(explanation.plan).splitlines()]
        known += [(name, value.strip()) for name, _, value in plan]
        known.append(("memory", f"at most {format_size(MEMORY)}"))
    known += _ends(explanation)
    width = max(len(name) for name, _ in known) + 2
    for name, value in known:
        yield printable(f"{name + ':':<{width}}{value}")
    failed = explanation.found is not None and any(not check.passed for check in explanation.found.checks)
    if explanation.found is not None and (verbose or failed):
        yield from check_table(explanation.found)
    yield ""
    if explanation.dry_run.waits:
        yield paint(
            printable(f"It would wait: {explanation.dry_run.waits}"), "yellow" if explanation.refusal is None else "red"
        )
    elif explanation.refusal is not None:
        yield paint(printable(f"It would fail: {explanation.refusal.what} [{explanation.refusal.code}]"), "red")
    else:
        yield paint("It would work.", "green")


def _known(explanation: Explanation) -> Iterator[tuple[str, str]]:
    found, clone = explanation.found, explanation.clone
    yield from explanation.place
    if clone is not None:
        yield from clone_lines(clone)
    if found is None:
        return
    facts, image = found.facts, found.image
    if facts is not None:
        yield "source", facts.location
        if found.redirected is not None:
            yield "redirected to", found.redirected
        guarded = result.encryption(explanation.job, found)
        if guarded is not None:
            yield "tls", _GUARDS[guarded]
        yield "length", words_of_size(facts.length) if facts.length is not None else "not reported by the source"
        yield "byte ranges", "yes" if facts.ranges else "no"
        yield "validator", facts.validator or "none"
    if found.container is not None:
        yield "image digest", str(found.container.digest)
        yield "architecture", found.container.architecture or "not specified"
        yield "disk in layer", f"{found.layer or 'none'} of {found.container.layers}"
    if image is not None or found.archive:
        name = "tar archive" if image is None else image.format
        details = (
            [image.variant or "", f"version {image.version}" if image.version else ""] if image is not None else []
        )
        described = ", ".join(word for word in details if word)
        wrapped = "" if image is None else "".join(f" in {wrapper}" for wrapper in reversed(found.wrappers))
        yield "format", f"{name}{f' ({described})' if described else ''}{wrapped}"
    if image is not None:
        yield "virtual size", words_of_size(found.virtual_size)
        if found.data_bytes is not None:
            yield "data", words_of_size(found.data_bytes)
    passed = sum(check.passed for check in found.checks)
    yield "checks", f"{passed} of {len(found.checks)} passed"
    yield from _promises(explanation)


_GUARDS = {
    "checked": "the server's certificate is verified",
    "unchecked": "on, but certificates are not verified",
    "plain": "none, the data is not encrypted",
}


def _promises(explanation: Explanation) -> Iterator[tuple[str, str]]:
    found = explanation.found
    yield from _cosign(explanation)
    if found is None or found.expected is None:
        return
    for promise in found.expected.promises:
        yield "checksum", f"{promise.digest} ({promise.by})"
    if not found.expected.promises:
        yield "checksum", "none known"
    asked = explanation.job.policy.signature if explanation.job is not None else "ignore"
    signers = [by for by in found.result.verified_by if by.startswith("signature")]
    if asked != "ignore" or signers:
        yield "signature", "; ".join(signers) or "none found"


def _cosign(explanation: Explanation) -> Iterator[tuple[str, str]]:
    """Show which signature of a container image was verified, or what will be required of it."""
    if explanation.job is None or not explanation.job.policy.cosign_keys:
        return
    signers = (
        [by for by in explanation.found.result.verified_by if by.startswith("cosign")] if explanation.found else []
    )
    yield "signature", "; ".join(signers) or "by cosign with one of the given keys, required and not verified yet"


def _ends(explanation: Explanation) -> Iterator[tuple[str, str]]:
    if explanation.requested is not None:
        yield "requested", words_of_size(explanation.requested)
    if (
        explanation.required is not None
        and explanation.found is not None
        and explanation.found.virtual_size is not None
    ):
        size, claim = words_of_size(explanation.found.virtual_size), words_of_size(explanation.required)
        yield "needed", f"{size}; as spec.pvc on a file system {claim}"
    space = explanation.space
    if space is not None:
        needs = "unknown" if space.needed is None else format_size(space.needed)
        most = "" if space.exact or space.needed is None else "at most "
        yield "space", f"{most}{needs} of {format_size(space.free)} free in {space.path}"
    for note in [*explanation.notes, *(explanation.found.result.warnings if explanation.found is not None else [])]:
        yield "note", note
