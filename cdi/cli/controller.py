"""The ``cdi controller`` command."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING

import click

from cdi.cli.options import PORT, labels, names, server_log
from cdi.cli.session import Session, subcommand
from cdi.cli.show import printable

if TYPE_CHECKING:
    from cdi.controller.components import Component
    from cdi.controller.main import Options
    from cdi.kube.client import Client


def _components(texts: Iterable[str]) -> tuple[Component, ...]:
    """Parse texts of the form ``kind/name``."""
    from cdi.controller.components import KINDS, Component

    found = []
    for text in texts:
        kind, _, name = text.partition("/")
        if kind not in KINDS or not name:
            raise click.BadParameter(f"{printable(text)!r} is not KIND/NAME with a KIND of {', '.join(KINDS)}")
        found.append(Component(kind=kind, name=name))
    return tuple(found)


@subcommand("controller")
@click.option(
    "--image",
    envvar="IMPORTER_IMAGE",
    required=True,
    help="Set the container image of worker pods; default: $IMPORTER_IMAGE.",
)
@click.option(
    "--pull-policy",
    envvar="PULL_POLICY",
    type=click.Choice(["Always", "IfNotPresent", "Never"]),
    default="IfNotPresent",
    show_default=True,
    help="Set the image pull policy of worker pods; default: $PULL_POLICY.",
)
@click.option(
    "--prefix",
    default="cdi",
    show_default=True,
    help="Set the prefix of the names of the Lease and Secrets; must equal that of cdi apiserver.",
)
@click.option("--watch-namespaces", type=names, default="", help="Act in these namespaces only, separated by commas.")
@click.option("--selector", type=labels, default="", help="Act on objects with these labels only: a=b,c=d.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Reconcile at most this many objects concurrently.",
)
@click.option(
    "--port",
    type=PORT,
    default=8080,
    show_default=True,
    help="Serve probes and metrics on this port.",
)
@click.option(
    "--metrics-port",
    type=PORT,
    help="Serve metrics on this port only, over HTTPS, to clients whose token may get the non-resource URL /metrics.",
)
@click.option(
    "--leader-election/--no-leader-election",
    default=True,
    help="Hold a Lease, so that only one replica acts at a time.",
)
@click.option(
    "--identity",
    envvar="CDI_IDENTITY",
    help="Set the holder of the Lease, e.g. the pod's name; a restart with the same identity resumes at once.",
)
@click.option(
    "--component",
    "components",
    metavar="KIND/NAME",
    multiple=True,
    help="Report this object, e.g. deployment/cdi-apiserver, in the CDI object's status if it is missing; repeatable.",
)
@click.option("--part", "parts", multiple=True, hidden=True)  # its name in older charts
@server_log
def command(
    session: Session,
    *,
    image: str,
    pull_policy: str,
    prefix: str,
    watch_namespaces: tuple[str, ...],
    selector: dict[str, str],
    workers: int,
    port: int,
    metrics_port: int | None,
    leader_election: bool,
    identity: str | None,
    components: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    """Run the controller: reconcile DataVolumes and PVCs, run worker pods, report status.

    -n is the namespace of the installation: it contains the Lease and the objects that CDIConfig names.  With
    --watch-namespaces or --selector other objects, including cluster-scoped ones, are left to another installation.
    """
    from cdi.controller.main import Options
    from cdi.controller.request import Scope
    from cdi.kube.client import connect
    from cdi.reconcile.settings import WorkerPodConfig

    options = Options(
        namespace=session.namespace,
        pods=WorkerPodConfig(image=image, pull_policy=pull_policy),
        scope=Scope(namespaces=watch_namespaces, selector=selector),
        workers=workers,
        port=port,
        leader_election=leader_election,
        prefix=prefix,
        identity=identity or None,
        version=version("cdi"),
        metrics_port=metrics_port,
        components=_components((*components, *parts)),
    )
    client = connect(session.kubeconfig, session.context)
    asyncio.run(_run(client, options))


async def _run(client: Client, options: Options) -> None:
    from cdi.api.names import prefixed_name
    from cdi.controller.main import ControllerProcess
    from cdi.kube.certificates import service_hosts
    from cdi.logs import fields
    from cdi.server.metrics_server import SERVICE, serve_metrics

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with client, contextlib.AsyncExitStack() as stack:
        process = ControllerProcess(client, options, stop)
        if options.metrics_port is not None:
            hosts = service_hosts(prefixed_name(SERVICE, options.prefix), options.namespace)
            port = await stack.enter_async_context(
                serve_metrics(client, options.metrics_port, process.metrics.registry, hosts=hosts)
            )
            logging.getLogger("cdi.controller").info("serving metrics", extra=fields(port=port))
        await process.run()
