"""The ``cdi apiserver`` command."""

from __future__ import annotations

import asyncio
import logging

import click

from cdi.api.errors import UsageError
from cdi.cli.session import Session, subcommand
from cdi.cli.show import printable


def _pairs(text: str | None) -> dict[str, str] | None:
    """Parse labels of the form ``a=b,c=d``."""
    if not text:
        return None
    found = dict(part.partition("=")[::2] for part in text.split(","))
    if any(not name.strip() for name in found):
        raise click.BadParameter(f"{printable(text)!r} is no list of label=value")
    return {name.strip(): value.strip() for name, value in found.items()}


@subcommand("apiserver")
@click.option(
    "--prefix", default="cdi", show_default=True, help="What the names of its Service and Secrets begin with."
)
@click.option("--webhook-prefix", help="The same of the webhook configurations; PREFIX-api unless given.")
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="Where it listens.")
@click.option("--bind", default="", help="The address that it listens at, instead of all.")
@click.option("--host", "hosts", multiple=True, help="A name or address that it is reached by beside its Service.")
@click.option("--url", default="", help="With --print-webhooks: where it is reached, instead of its Service.")
@click.option("--watch-namespaces", default="", help="With --print-webhooks: the namespaces that it is asked about.")
@click.option("--selector", help="Labels of the objects that it is asked about.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--print-webhooks", is_flag=True, help="Print the webhook configurations and end.")
def command(
    session: Session,
    *,
    prefix: str,
    webhook_prefix: str | None,
    port: int,
    bind: str,
    hosts: tuple[str, ...],
    url: str,
    watch_namespaces: str,
    selector: str | None,
    log_level: str,
    print_webhooks: bool,
) -> None:
    """Serve the admission webhooks of a cluster.

    Its certificates are made, kept in Secrets of the namespace given with -n, and renewed by itself; the webhook
    configurations that are there learn to trust them.
    """
    from cdi.server.hooks import Installation, webhook_configurations

    if url and not url.startswith("https://"):
        raise UsageError(f"{printable(url)!r} is no https:// URL", remedy="--url https://HOST:PORT")
    installation = Installation(
        namespace=session.namespace,
        service=f"{prefix}-api",
        prefix=webhook_prefix or f"{prefix}-api",
        url=url.rstrip("/"),
        namespaces=tuple(name.strip() for name in watch_namespaces.split(",") if name.strip()),
        object_labels=_pairs(selector),
    )
    if print_webhooks:
        import yaml

        click.echo(yaml.safe_dump_all(webhook_configurations(installation), sort_keys=False), nl=False)
        return
    from cdi.controller.logs import configure
    from cdi.server.run import Options, serve

    configure(2 if log_level == "debug" else 1)
    logging.getLogger("cdi").setLevel(log_level.upper())
    options = Options(
        installation=installation,
        prefix=prefix,
        hosts=hosts,
        port=port,
        bind=bind,
        kubeconfig=None if session.kubeconfig is None else str(session.kubeconfig),
        context=session.context,
    )
    asyncio.run(serve(options))
