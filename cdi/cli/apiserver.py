"""The ``cdi apiserver`` command."""

from __future__ import annotations

import asyncio

import click

from cdi.api.errors import UsageError
from cdi.cli.options import PORT, labels, names, server_log
from cdi.cli.session import Session, subcommand
from cdi.cli.show import printable


@subcommand("apiserver")
@click.option(
    "--prefix", default="cdi", show_default=True, help="Set the prefix of the names of the Service and Secrets."
)
@click.option(
    "--webhook-prefix", help="Set the prefix of the names of the webhook configurations; default: PREFIX-api."
)
@click.option("--port", type=PORT, default=8443, show_default=True, help="Listen on this port.")
@click.option("--bind", default="", help="Listen on this address instead of all.")
@click.option("--host", "hosts", multiple=True, help="Add this name or address to the certificate; may be repeated.")
@click.option("--url", default="", help="With --print-webhooks: send requests to this URL instead of the Service.")
@click.option(
    "--watch-namespaces",
    type=names,
    default="",
    help="With --print-webhooks: review only objects in these namespaces, separated by commas.",
)
@click.option(
    "--selector",
    type=labels,
    default="",
    help="With --print-webhooks: review only objects with these labels: a=b,c=d.",
)
@server_log
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
    watch_namespaces: tuple[str, ...],
    selector: dict[str, str],
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
        namespaces=watch_namespaces,
        object_labels=selector,
    )
    if print_webhooks:
        import yaml

        click.echo(yaml.safe_dump_all(webhook_configurations(installation), sort_keys=False), nl=False)
        return
    from cdi.server.server import Options, serve

    options = Options(
        installation=installation,
        prefix=prefix,
        hosts=hosts,
        port=port,
        bind=bind,
        kubeconfig=session.kubeconfig,
        context=session.context,
    )
    asyncio.run(serve(options))
