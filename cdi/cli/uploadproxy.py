"""The ``cdi uploadproxy`` command."""

from __future__ import annotations

import contextlib

import click

from cdi.cli.options import PORT, server_log
from cdi.cli.session import Session, subcommand


@subcommand("uploadproxy")
@click.option(
    "--tls",
    default="/etc/cdi/tls",
    show_default=True,
    help="Read the serving certificate, tls.crt and tls.key, from this directory.",
)
@click.option(
    "--client-tls",
    default="/etc/cdi/client",
    show_default=True,
    help="Read the client certificate for upload servers, tls.crt and tls.key, from this directory.",
)
@click.option(
    "--server-ca",
    default="/etc/cdi/server-ca/ca-bundle.crt",
    show_default=True,
    help="Trust the CA certificates in this file for upload servers.",
)
@click.option(
    "--token-key",
    default="/etc/cdi/token/id_rsa.pub",
    show_default=True,
    help="Read the public key of upload tokens from this file.",
)
@click.option("--port", type=PORT, default=8443, show_default=True, help="Listen on this port.")
@click.option(
    "--metrics-port",
    type=PORT,
    default=8080,
    show_default=True,
    help="Serve metrics on this port, over plain HTTP.",
)
@click.option("--bind", default="", help="Listen on this address instead of all.")
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=3600.0,
    show_default=True,
    help="After SIGTERM, wait at most this many seconds for uploads in progress.",
)
@server_log
def command(
    session: Session,
    *,
    tls: str,
    client_tls: str,
    server_ca: str,
    token_key: str,
    port: int,
    metrics_port: int,
    bind: str,
    drain: float,
) -> None:
    """Forward uploads to the volumes of a cluster, and serve a web page.

    Clients authenticate with a token from an UploadTokenRequest; the page acts with the permissions of its user's own
    token.  The files are read again when they change.
    """
    from cdi.kube.client import Client
    from cdi.kube.credentials import find
    from cdi.kube.sync import SyncClient
    from cdi.server.page.cluster import ClusterBackendProvider
    from cdi.server.page.service import Page
    from cdi.server.proxy.policy import ClusterPolicy
    from cdi.server.proxy.run import Options, serve
    from cdi.server.proxy.volumes import ClusterVolumes

    options = Options(
        tls=tls,
        client=client_tls,
        authorities=server_ca,
        token_key=token_key,
        port=port,
        metrics_port=metrics_port,
        bind=bind,
        drain=drain,
    )
    credentials = find(session.kubeconfig, session.context)
    with (
        SyncClient(Client(credentials)) as client,
        contextlib.closing(ClusterBackendProvider(client, credentials)) as desks,
        contextlib.closing(ClusterPolicy(client)) as policy,
    ):
        serve(options, ClusterVolumes(client), pages=Page(desks).begin, policy=policy)
