"""The ``cdi apiserver`` command."""

from __future__ import annotations

import asyncio

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
        raise click.BadParameter(f"{printable(text)!r} is not a list of label=value")
    return {name.strip(): value.strip() for name, value in found.items()}


@subcommand("apiserver")
@click.option(
    "--prefix", default="cdi", show_default=True, help="Set the prefix of the names of the Service and Secrets."
)
@click.option(
    "--webhook-prefix", help="Set the prefix of the names of the webhook configurations; default: PREFIX-api."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="Listen on this port.")
@click.option("--bind", default="", help="Listen on this address instead of all.")
@click.option("--host", "hosts", multiple=True, help="Add this name or address to the certificate; may be repeated.")
@click.option("--url", default="", help="With --print-webhooks: send requests to this URL instead of the Service.")
@click.option(
    "--watch-namespaces",
    default="",
    help="With --print-webhooks: review only objects in these namespaces, separated by commas.",
)
@click.option("--selector", help="With --print-webhooks: review only objects with these labels: a=b,c=d.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--print-webhooks", is_flag=True, help="Print the webhook configurations and exit.")
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

    The server issues and renews its certificates, stores them in Secrets of the namespace given with -n, and writes
    the CA bundle into existing webhook configurations.
    """
    from cdi.server.hooks import Installation, webhook_configurations

    if url and not url.startswith("https://"):
        raise UsageError(f"{printable(url)!r} is not an https:// URL", remedy="--url https://HOST:PORT")
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
    from cdi.logs import LogFormat, configure
    from cdi.server.server import Options, serve

    configure(LogFormat.JSON, log_level)
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
