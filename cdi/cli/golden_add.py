"""The ``cdi golden add`` command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from cdi.api import golden
from cdi.api.errors import UsageError
from cdi.cli.access import access_options, read_wishes, request_of, stored_secret, wish_options
from cdi.cli.bars import progress_command
from cdi.cli.golden_poll import wait_for_offer
from cdi.cli.options import duration
from cdi.cli.session import Session, subcommand
from cdi.cli.show import document

if TYPE_CHECKING:
    from cdi.client.request import Request

_MAX_DIGITS = 6


@subcommand("add")
@click.argument("image", metavar="URL")
@click.option("--name", help="Set the name of the golden image; default: derived from the URL.")
@click.option(
    "--data-source", metavar="NAME", help="Set the name of the managed DataSource; default: that of the image."
)
@click.option("--schedule", help="Poll at these times, in cron format; default: twice a day.")
@click.option("--no-schedule", is_flag=True, help="Never poll; another program writes the digest that is wanted.")
@click.option("--keep", type=click.IntRange(1, 1000), metavar="N", help="Keep N versions; default: 3.")
@click.option(
    "--keep-for", type=duration, metavar="DURATION", help="Keep outdated versions at least that long, e.g. 30d."
)
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME=RULE,…",
    help="Add a DataSource with rules of its own (after=7d, behind=1, proven, manual); may be repeated.",
)
@click.option("--proof", type=click.Choice(["none", "boot"]), help="Offer a version only after it has booted.")
@click.option(
    "--proof-timeout", type=duration, metavar="DURATION", help="With --proof boot: wait at most that long, e.g. 10m."
)
@click.option("--proof-expect", metavar="REGEX", help="With --proof boot: require a matching console line.")
@click.option(
    "--architecture",
    "architectures",
    multiple=True,
    metavar="ARCH",
    help="Import this architecture of a multi-platform index into a DataSource of its own; may be repeated.",
)
@click.option("--record-key", metavar="SECRET", help="Sign records of origin with the private key in this Secret.")
@click.option("--storage-class", metavar="NAME", help="Store the versions in this storage class.")
@click.option(
    "--retention", type=click.Choice(["All", "None"]), help="Keep (All) or delete (None) versions with the image."
)
@click.option("--dry-run", is_flag=True, help="Validate it and print what would be created, but write nothing.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the first version is offered.")
@click.option("--timeout", type=duration, help="With --wait: wait at most this long, e.g. 15m; default: no limit.")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Print the DataImportCron in this format.")
@wish_options
@access_options
def add(
    session: Session,
    *,
    image: str,
    name: str | None,
    data_source: str | None,
    schedule: str | None,
    no_schedule: bool,
    keep: int | None,
    storage_class: str | None,
    retention: str | None,
    dry_run: bool,
    waits: bool,
    timeout: float | None,
    output: str | None,
    **options: Any,
) -> None:
    """Keep the image at a URL (http, https, s3, gs or docker) up to date.

    Creates a DataImportCron: its source is polled on a schedule, and each new version is imported, verified and then
    offered by the managed DataSource.  Without --size the image's size is read first.
    """
    from cdi.client.golden_manifest import GoldenRequest, add_golden, build_golden, default_schedule
    from cdi.explain.find_size import name_of

    settings = _settings(options)
    if waits and (dry_run or no_schedule):
        raise UsageError("--wait needs polls", remedy="omit --dry-run and --no-schedule, or --wait")
    if no_schedule and schedule is not None:
        raise UsageError("--schedule and --no-schedule exclude each other", remedy="omit one of them")
    wishes = read_wishes(options)
    request = request_of(image, options, **wishes)
    name = name_of(request, name)
    wanted = GoldenRequest(
        name=name,
        data_source=data_source or name,
        source=request,
        size=_size(session, request, name),
        schedule="" if no_schedule else schedule or default_schedule(session.namespace, name),
        keep=keep,
        storage_class=storage_class,
        retention=retention,
        settings=settings,
    )
    manifests = build_golden(wanted, session.namespace, local=not session.in_cluster)
    if dry_run:
        session.backend.apply([*manifests.inputs, manifests.cron], dry_run=True)
        click.echo(document(manifests.cron, output or "yaml"))
        return
    created = add_golden(session.backend, manifests)
    if output is not None:
        click.echo(document(session.backend.get("dataimportcron", session.namespace, name), output))
    else:
        click.echo(f"dataimportcron/{name} {'created' if created else 'unchanged'}")
    if waits:
        wait_for_offer(session, name, timeout=timeout)


def _settings(options: dict[str, Any]) -> dict[str, str]:
    """Remove the options that become annotations from `options`, and return the annotations."""
    from cdi.client.golden_manifest import channels_annotation

    architectures = options.pop("architectures")
    given = {
        golden.PROOF: options.pop("proof"),
        golden.PROOF_TIMEOUT: _go_duration(options.pop("proof_timeout")),
        golden.PROOF_EXPECT: options.pop("proof_expect"),
        golden.CHANNELS: channels_annotation(_channels(options.pop("channels"))),
        golden.KEEP_FOR: _go_duration(options.pop("keep_for")),
        golden.ARCHITECTURES: ",".join(architectures) or None,
        golden.RECORD_KEY: options.pop("record_key"),
    }
    if given[golden.PROOF] != "boot" and (given[golden.PROOF_TIMEOUT] or given[golden.PROOF_EXPECT]):
        raise UsageError("--proof-timeout and --proof-expect require --proof boot", remedy="add --proof boot")
    return {annotation: value for annotation, value in given.items() if value is not None}


def _channels(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Parse channels given as ``NAME=RULE[,RULE…]``.

    Raises:
        UsageError: A channel is malformed or given twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, rules = text.partition("=")
        if not name or not rules:
            raise UsageError(f"{text[:80]!r} is not NAME=RULE", remedy="--channel stable=after=7d,proven")
        if name in found:
            raise UsageError(f"channel {name[:80]!r} is given twice", remedy="give all its rules at once")
        found[name] = dict(_rule(rule.strip(), name) for rule in rules.split(","))
    return found


def _rule(rule: str, channel: str) -> tuple[str, Any]:
    kind, _, value = rule.partition("=")
    if rule in ("proven", "manual"):
        return rule, True
    if kind == "after":
        return kind, _go_duration(duration(value))
    if kind == "behind" and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        return kind, int(value)
    raise UsageError(
        f"{rule[:40]!r} is not a rule of channel {channel[:80]!r}", remedy="use after=7d, behind=1, proven or manual"
    )


def _go_duration(seconds: float | None) -> str | None:
    """Return seconds as a Kubernetes duration, which has no days."""
    if seconds is None:
        return None
    whole = int(seconds)
    return f"{whole // 3600}h" if whole and whole % 3600 == 0 else f"{whole}s"


def _size(session: Session, request: Request, name: str) -> int:
    """Return the requested size, or the image's virtual size, as ``cdi import`` does."""
    if request.size is not None:
        return request.size
    if not request.place.fetched:
        return 1  # the request is rejected with its reason
    from cdi.explain.find_size import find_size, find_size_for_cluster

    with progress_command(name, always=True) as show:
        if session.in_cluster:
            return find_size_for_cluster(request, stored_secret(session, request), on_progress=show)
        return find_size(session.embedded.home, request, session.namespace, name, on_progress=show)
