"""A controller process of the simulation: the real `Manager` over a simulated transport."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from unittest import mock

from cdi.api.kinds import CONFIG_MAPS, NAMESPACES, SECRETS, Object, Resource
from cdi.controller.manager import Manager
from cdi.controller.metrics import Metrics
from cdi.controller.progress import FetchProgress
from cdi.controller.request import Scope
from cdi.reconcile.settings import WorkerPodConfig
from tests.simulation.api_server import ApiServer, Request
from tests.simulation.transport import Network, simulated_client
from tests.simulation.virtual_time import Clock, VirtualLoop, clocks

INSTALL_NAMESPACE = "cdi"
Fetch = Callable[[str], bytes]


class Controller:
    """One process, from its start to its end."""

    def __init__(self, server: ApiServer, name: str, network: Network) -> None:
        """Start the process; call this within `progress_of`."""
        self.name = name
        self._client, self._transport = simulated_client(server, name, network)
        self._stop = asyncio.Event()
        metrics = Metrics(lambda _: (), version="1", waiting=lambda: 0, in_work=lambda: 0)
        self.manager = Manager(
            self._client,
            scope=Scope(),
            pods=WorkerPodConfig(image="example/cdi:1"),
            install_namespace=INSTALL_NAMESPACE,
            version="1",
            workers=4,
            metrics=metrics,
            stop=self._stop,
        )
        self._task = asyncio.create_task(self.manager.run())

    @property
    def ended(self) -> bool:
        return self._task.done()

    def result(self) -> BaseException | None:
        """Return why the process ended by itself; None if it was killed or runs."""
        return self._task.exception() if self._task.done() and not self._task.cancelled() else None

    def die(self) -> None:
        """Lose the connection, so that nothing that the process still does has an effect."""
        self._transport.dead = True

    async def kill(self) -> None:
        """Kill the process."""
        self.die()
        self._task.cancel()
        await asyncio.wait({self._task})

    async def shut_down(self) -> None:
        """Stop the process as Kubernetes does, and wait for its end."""
        self._stop.set()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def progress_of(fetch: Fetch) -> AbstractContextManager[object]:
    """Let controllers get the progress of the pod with an address from `fetch`, which may raise `OSError`."""

    async def ask(address: str) -> bytes:
        await asyncio.sleep(0.01)
        return fetch(address)

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[FetchProgress]:
        yield ask

    return mock.patch("cdi.controller.manager.progress_client", client)


@functools.cache
def installation() -> tuple[tuple[Resource, Object], ...]:
    """Return the Secrets and ConfigMaps that a controller creates first; the keys take long to make."""
    loop = VirtualLoop()
    clock = Clock(loop)
    chance = random.Random(0)
    server = ApiServer(lambda: "2026-01-01T00:00:00Z")
    server.perform("create", NAMESPACES, {"metadata": {"name": INSTALL_NAMESPACE}}, client="setup")

    async def run() -> None:
        controller = Controller(server, "setup", Quiet())
        await asyncio.sleep(40)
        await controller.kill()

    with clocks(clock, chance), progress_of(lambda _: b""):
        loop.run_until_complete(run())
    loop.close()
    found = []
    for resource in (SECRETS, CONFIG_MAPS):
        for body in server.all(resource):
            kept = {
                name: body["metadata"][name]
                for name in ("name", "namespace", "labels", "annotations")
                if name in body["metadata"]
            }
            found.append((resource, {**body, "metadata": kept}))
    return tuple(found)


class Quiet:
    """A network without delays and faults."""

    async def before(self, request: Request) -> None:
        pass

    async def after(self, request: Request) -> None:
        pass

    async def delivery(self, request: Request) -> int:
        return 1
