"""One run: a cluster, users, faults and controllers, from the first event to quiescence."""

from __future__ import annotations

import asyncio
import hashlib
import random
import datetime as dt

from cdi.api.timestamps import timestamp
from cdi.kube.resources import (
    CSI_DRIVERS,
    EVENTS,
    NAMESPACES,
    NODES,
    SECRETS,
    CONFIG_MAPS,
    STORAGE_CLASSES,
    VOLUME_SNAPSHOT_CLASSES,
    Object,
    Resource,
)
from tests.simulation.api_server import DEFAULT_CLASS, ApiServer, Request
from tests.simulation.cluster import Cluster, Step
from tests.simulation.kubelet import GarbageCollector, JobController, Kubelet
from tests.simulation.process import Controller, installation, progress_of
from tests.simulation.storage import Storage
from tests.simulation.virtual_time import START, Clock, Stuck, VirtualLoop, clocks
from tests.simulation.workers import Script, Workers

CEPH, LOCAL = "rook-ceph.rbd.csi.ceph.com", "kubevirt.io.hostpath-provisioner"
QUIET = 100.0
"""Seconds without a write after which the cluster counts as quiet: longer than any backoff of the work queue."""
LIMIT = 3 * 3600.0
"""Seconds after which a run that is not quiet has failed."""


class Simulation:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.loop = VirtualLoop()
        self.clock = Clock(self.loop)
        self.server = ApiServer(self.stamp)
        self.cluster = Cluster(self.server, random.Random(seed + 1), self.loop.time, self.stamp)
        self.script = Script()
        self.workers = Workers(self.cluster, self.script)
        self.kubelet = Kubelet(self.cluster, self.workers)
        self.actors = [
            Storage(self.cluster), self.kubelet, JobController(self.cluster), GarbageCollector(self.cluster)
        ]  # fmt: skip
        self.trace: list[str] = []
        self.last_write = 0.0
        self.server.listeners.append(self._record)

    def stamp(self) -> str:
        return timestamp(dt.datetime.fromtimestamp(START + self.loop.time(), dt.UTC))

    def _record(self, request: Request, resource: Resource, old: Object | None, new: Object | None) -> None:
        self.last_write = self.loop.time()
        last = new or old
        assert last is not None
        phase = (last.get("status") or {}).get("phase", "")
        self.trace.append(
            f"{self.loop.time():9.2f} {request} {'' if new is not None else 'gone '}{phase}".rstrip()
        )

    @property
    def digest(self) -> str:
        """Digest of everything that happened."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]

    def run(self) -> None:
        with clocks(self.clock, self.chance), progress_of(self._progress):
            try:
                self.loop.run_until_complete(self._run())
            finally:
                self.loop.close()

    def _progress(self, address: str) -> bytes:
        raise OSError("no route to host")

    def set_up(self) -> None:
        def create(resource: Resource, name: str, **body) -> None:
            metadata = {"name": name, **body.pop("metadata", {})}
            self.server.perform("create", resource, {"metadata": metadata, **body}, client="setup")

        for name in ("cdi", "default", "golden"):
            create(NAMESPACES, name)
        for resource, body in installation():
            self.server.perform("create", resource, body, client="setup")
        for name in ("node-1", "node-2"):
            create(NODES, name, status={"conditions": [{"type": "Ready", "status": "True"}]})
        for driver in (CEPH, LOCAL):
            create(CSI_DRIVERS, driver)
        annotations = {DEFAULT_CLASS: "true"}
        create(
            STORAGE_CLASSES, "ceph", metadata={"annotations": annotations}, provisioner=CEPH,
            reclaimPolicy="Delete", volumeBindingMode="Immediate", allowVolumeExpansion=True,
        )  # fmt: skip
        create(
            STORAGE_CLASSES, "local", provisioner=LOCAL, reclaimPolicy="Delete",
            volumeBindingMode="WaitForFirstConsumer",
        )  # fmt: skip
        create(VOLUME_SNAPSHOT_CLASSES, "ceph-snapshots", driver=CEPH, deletionPolicy="Delete")

    async def _run(self) -> None:
        self.set_up()
        nature = asyncio.create_task(self._nature())
        controller = Controller(self.server, "controller-1", self.network)
        await self.script_of_users()
        await self._settle()
        await controller.kill()
        nature.cancel()
        await asyncio.wait({nature})

    async def _nature(self) -> None:
        chance = self.cluster.chance
        while True:
            self.server.changed.clear()
            steps = [step for actor in self.actors for step in actor.steps()]
            if steps:
                chance.choice(steps).act()
                await asyncio.sleep(chance.choice((0.002, 0.02, 0.2)))
                continue
            moment = self.cluster.next_timer()
            try:
                async with asyncio.timeout_at(moment):
                    await self.server.changed.wait()
            except TimeoutError:
                pass

    async def _settle(self) -> None:
        end = self.loop.time() + LIMIT
        while self.loop.time() < end:
            await asyncio.sleep(10.0)
            if self.loop.time() - self.last_write > QUIET:
                return
        self.cluster.violate("quiescence", "never quiet")
