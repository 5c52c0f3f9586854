"""The controller process: what runs beside what, from its start to its end.

    watches ──► keys that are due ──► reconcilers (several at once, one to a key) ──► the API server
    pods    ◄── asked for progress ──┘

Probes and metrics are served from the first moment; the rest runs only while this process leads (`Life`).  It holds
nothing that cannot be lost: killed at any moment, the next one finds the objects as they are and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from cdi.api.names import INSTALLATION, own_name
from cdi.controller.keys import Scope
from cdi.controller.life import Life
from cdi.controller.logs import fields
from cdi.controller.metrics import Metrics
from cdi.controller.parts import Part
from cdi.controller.serving import serving
from cdi.kube.client import Client
from cdi.kube.lease import Leadership
from cdi.kube.resources import Object, Resource
from cdi.reconcile.world import Pods

LEASE = "cdi-controller"

log = logging.getLogger("cdi.controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    namespace: str
    """Where the controller is installed: its Lease, and what CDIConfig names."""
    pods: Pods
    """How worker pods are made, as far as CDI and CDIConfig do not say."""
    scope: Scope = field(default_factory=Scope)
    workers: int = 8
    """Reconciles at once."""
    port: int = 8080
    leader_election: bool = True
    prefix: str = INSTALLATION
    """What the names of its Lease, Secrets and ConfigMaps begin with."""
    identity: str | None = None
    """Who holds the Lease; a process that is begun again under its name does not wait for its own Lease to end."""
    version: str = ""
    parts: tuple[Part, ...] = ()
    """What else belongs to the installation."""


class Controller:
    """One process: it leads, perhaps several times, with nothing carried from one to the next."""

    def __init__(self, client: Client, options: Options, stop: asyncio.Event) -> None:
        """`stop` asks it to end, and to finish first what it is at."""
        self._client = client
        self._options = options
        self._stop = stop
        self._life: Life | None = None
        self._metrics = Metrics(
            self._values,
            version=options.version,
            waiting=lambda: self._life.queue.overdue if self._life is not None else 0,
            in_work=lambda: self._life.queue.in_work if self._life is not None else 0,
        )

    async def run(self) -> None:
        """Until asked to stop.  Raises `UsageError` for a port that is taken."""
        options = self._options
        async with serving(options.port, ready=self._ready, alive=_alive, registry=self._metrics.registry) as port:
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
            lease = own_name(LEASE, options.prefix)
            await Leadership(self._client, options.namespace, lease, identity=options.identity).run(self._live)
        else:
            await self._live()

    async def _live(self) -> None:
        self._life = Life(
            self._client,
            scope=self._options.scope,
            pods=self._options.pods,
            install_namespace=self._options.namespace,
            prefix=self._options.prefix,
            version=self._options.version,
            parts=self._options.parts,
            workers=self._options.workers,
            metrics=self._metrics,
            stop=self._stop,
        )
        try:
            await self._life.run()
        finally:
            self._life = None

    def _ready(self) -> str:
        """A candidate that waits to lead is ready: a rolling update would never come to its end otherwise."""
        return self._life.missing() if self._life is not None else ""

    def _values(self, resource: Resource) -> Iterable[Object]:
        return self._life.watches.values(resource) if self._life is not None else ()


def _alive() -> str:
    """That it answers shows that the event loop turns."""
    return ""
