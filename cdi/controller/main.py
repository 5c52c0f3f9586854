"""Controller process: its tasks from start to shutdown.

    watches ──► keys that are due ──► reconcilers (concurrent, one per key) ──► API server
    pods    ◄── polled for progress ──┘

Probes and metrics are served from the start, metrics by `cdi.server.metrics_server` if clients have to authenticate;
everything else runs only while this process is the leader (`Manager`). The process holds no state that must survive: if
it is killed, the next leader continues from the objects in the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from cdi.api.kinds import Object, Resource
from cdi.api.names import INSTALLATION, prefixed_name
from cdi.controller.components import Component
from cdi.controller.health import serve_health
from cdi.controller.manager import Manager
from cdi.controller.metrics import Metrics
from cdi.controller.request import Scope
from cdi.kube.client import Client
from cdi.kube.lease import LeaderElector
from cdi.logs import fields
from cdi.reconcile.settings import WorkerPodConfig

LEASE = "cdi-controller"

log = logging.getLogger("cdi.controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Command line options."""

    namespace: str
    """Namespace of the installation, with its Lease and the objects that CDIConfig refers to."""
    pods: WorkerPodConfig
    """Settings of worker pods for which CDI and CDIConfig have no value."""
    scope: Scope = field(default_factory=Scope)
    workers: int = 8
    """Number of concurrent reconciles."""
    port: int = 8080
    leader_election: bool = True
    prefix: str = INSTALLATION
    """First part of the names of its Lease, Secrets and ConfigMaps."""
    identity: str | None = None
    """Holder identity in the Lease.

    A process restarted with the same identity does not wait for its own Lease to expire.
    """
    version: str = ""
    metrics_port: int | None = None
    """Port of metrics for authenticated clients (`cdi.server.metrics_server`); None serves them beside the probes."""
    components: tuple[Component, ...] = ()
    """Other components of the installation."""


class ControllerProcess:
    """Controller process, which may become the leader several times and keeps no state in between."""

    def __init__(self, client: Client, options: Options, stop: asyncio.Event) -> None:
        """Prepare the process; when `stop` is set, it finishes the running reconciles and ends."""
        self._client = client
        self._options = options
        self._stop = stop
        self._life: Manager | None = None
        self.metrics = Metrics(
            self._values,
            version=options.version,
            waiting=lambda: self._life.queue.ready if self._life is not None else 0,
            in_work=lambda: self._life.queue.processing if self._life is not None else 0,
        )

    async def run(self) -> None:
        """Run until asked to stop.

        Raises:
            UsageError: The port is in use.

        """
        options = self._options
        registry = self.metrics.registry if options.metrics_port is None else None
        async with serve_health(options.port, ready=self._ready, alive=_alive, registry=registry) as port:
            log.info("serving", extra=fields(port=port))
            lead = asyncio.ensure_future(self._lead())
            stopping = asyncio.ensure_future(self._stop.wait())
            try:
                await asyncio.wait({lead, stopping}, return_when=asyncio.FIRST_COMPLETED)
                log.info("stopping")
            finally:
                stopping.cancel()
                lead.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await lead

    async def _lead(self) -> None:
        if self._options.leader_election:
            options = self._options
            lease = prefixed_name(LEASE, options.prefix)
            await LeaderElector(self._client, options.namespace, lease, identity=options.identity).run(self._live)
        else:
            await self._live()

    async def _live(self) -> None:
        self._life = Manager(
            self._client,
            scope=self._options.scope,
            pods=self._options.pods,
            install_namespace=self._options.namespace,
            prefix=self._options.prefix,
            version=self._options.version,
            components=self._options.components,
            workers=self._options.workers,
            metrics=self.metrics,
            stop=self._stop,
        )
        try:
            await self._life.run()
        finally:
            self._life = None

    def _ready(self) -> str:
        """Return the reason why the process is not ready; empty if it is.

        A candidate that waits for leadership is ready, as otherwise no rolling update could complete.
        """
        return self._life.unsynced() if self._life is not None else ""

    def _values(self, resource: Resource) -> Iterable[Object]:
        return self._life.watches.values(resource) if self._life is not None else ()


def _alive() -> str:
    """Return no error: any response shows that the event loop runs."""
    return ""
