"""One run: a cluster, users, faults and controllers, from the first event to quiescence."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

from cdi.api.kinds import (
    CSI_DRIVERS,
    DATA_VOLUMES,
    NAMESPACES,
    NODES,
    PODS,
    STORAGE_CLASSES,
    VOLUME_SNAPSHOT_CLASSES,
    Object,
    Resource,
)
from cdi.api.timestamps import timestamp
from tests.simulation import faults, users
from tests.simulation.api_server import DEFAULT_CLASS, ApiServer, Request
from tests.simulation.cluster import TERMINAL, Actor, Cluster
from tests.simulation.faults import CLOCK_JUMPS, WATCHED, Fault, Faults
from tests.simulation.invariants import Invariants
from tests.simulation.kubelet import GarbageCollector, JobController, Kubelet
from tests.simulation.process import Controller, installation, progress_of
from tests.simulation.remembered import remembered
from tests.simulation.storage import Storage
from tests.simulation.users import Operation, Users
from tests.simulation.virtual_time import START, Clock, Stuck, VirtualLoop, clocks
from tests.simulation.workers import End, Script, Workers

CEPH, LOCAL = "rook-ceph.rbd.csi.ceph.com", "kubevirt.io.hostpath-provisioner"
QUIET = 100.0
"""Seconds without a write after which the cluster counts as quiet: longer than any backoff of the work queue."""
LONG_QUIET = 400.0
"""The same while a DataVolume is not in a final phase: longer than any delay of its next attempt."""
LIMIT = 3600.0
"""Seconds after which a run that is not quiet has failed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a cluster in a run."""

    seed: int
    operations: tuple[Operation, ...]
    faults: tuple[Fault, ...]

    @classmethod
    def of_seed(cls, seed: int) -> Self:
        chance = random.Random(seed)
        until = chance.choice((5.0, 20.0, 60.0))
        return cls(
            seed=seed,
            operations=tuple(users.generate(chance, until)),
            faults=tuple(faults.generate(chance, until * 1.5)),
        )

    def __str__(self) -> str:
        return "\n".join(str(one) for one in sorted((*self.operations, *self.faults), key=lambda one: one.at))


class Simulation:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._chance = random.Random(plan.seed)
        self.loop = VirtualLoop()
        self.clock = Clock(self.loop)
        self.server = ApiServer(self.stamp)
        self.cluster = Cluster(self.server, random.Random(plan.seed + 1), self.loop.time, self.stamp)
        self.script = Script()
        self.workers = Workers(self.cluster, self.script)
        self.kubelet = Kubelet(self.cluster, self.workers)
        self.users = Users(self.cluster, self.script)
        self.invariants = Invariants(
            self.cluster,
            self.users,
            operations=len(plan.operations),
            faults=plan.faults,
        )
        self.faults = Faults(random.Random(plan.seed + 2), self.loop.time, self._crash)
        self._actors: tuple[Actor, ...] = (
            Storage(self.cluster), self.kubelet, JobController(self.cluster), GarbageCollector(self.cluster), self.users
        )  # fmt: skip
        self._controllers: dict[str, Controller] = {}
        self._started = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.trace: list[str] = []
        self._last_write = 0.0
        self.server.listeners += [self._record, self.invariants.changed]
        self.cluster.violated = lambda text: self._log(f"{self.loop.time():7.2f} VIOLATED {text}")

    @property
    def violations(self) -> list[str]:
        return self.cluster.violations

    @property
    def digest(self) -> str:
        """Digest of everything that happened."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]

    def stamp(self) -> str:
        """Return the API server's time as a timestamp."""
        return timestamp(dt.datetime.fromtimestamp(START + self.loop.time(), dt.UTC))

    def run(self) -> None:
        """Run to quiescence, and check the invariants."""
        with clocks(self.clock, self._chance), progress_of(self._progress), remembered():
            try:
                self.loop.run_until_complete(self._run())
                if not self.violations:
                    self.invariants.finish()
            except Stuck as error:
                self.cluster.violate("quiescence_is_reached", str(error))
            finally:
                self.loop.shut_down()

    async def _run(self) -> None:
        self._set_up()
        self._start_controller()
        self._spawn(self._nature())
        for one in sorted((*self.plan.operations, *self.plan.faults), key=lambda one: one.at):
            await asyncio.sleep(max(0.0, one.at - self.loop.time()))
            if self.violations:
                break
            self._log(str(one))
            if isinstance(one, Operation):
                self.users.perform(one)
            else:
                self._begin(one)
        await self._settle()
        for name, controller in self._controllers.items():
            self._check_runs(name, controller)
            if not self.violations:
                self.invariants.check_caches(name, controller.manager.watches)
        for task in self._tasks:
            task.cancel()
        for controller in tuple(self._controllers.values()):
            await controller.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        return task

    def _log(self, text: str) -> None:
        self.trace.append(text)

    def _record(self, request: Request, _: Resource, old: Object | None, new: Object | None) -> None:
        self._last_write = self.loop.time()
        last = new or old
        assert last is not None
        phase = (last.get("status") or {}).get("phase", "")
        self._log(f"{self.loop.time():7.2f} {request} {'' if new is not None else 'gone '}{phase}".rstrip())

    # --- controllers ----------------------------------------------------------------------------------------------

    def _start_controller(self) -> None:
        self._started += 1
        name = f"controller-{self._started}"
        self._log(f"{self.loop.time():7.2f} {name} starts")
        self._controllers[name] = Controller(self.server, name, self.faults)

    def _crash(self, name: str) -> None:
        """Kill a controller, and start another one some time later unless one runs."""
        controller = self._controllers.pop(name, None)
        if controller is not None:
            self._check_runs(name, controller)
            self._log(f"{self.loop.time():7.2f} {name} is killed")
            controller.die()
            self._spawn(self._replace(controller))

    async def _replace(self, controller: Controller) -> None:
        await controller.kill()
        await asyncio.sleep(self.faults.chance.choice((0.5, 5.0, 20.0)))
        if not self._controllers:
            self._start_controller()

    def _check_runs(self, name: str, controller: Controller) -> None:
        """Report a controller that has ended without being stopped; the others may have done its work."""
        if controller.ended:
            self.cluster.violate("controllers_run", f"{name} has ended: {controller.result()!r}")

    def _progress(self, _: str) -> bytes:
        raise OSError("no route to host")

    # --- faults ---------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        faults, end = self.faults, self.loop.time() + fault.seconds
        match fault.kind:
            case "crash before" | "crash after":
                faults.fuse, faults.fuse_before = fault.number + 1, fault.kind == "crash before"
            case "crash":
                for name in tuple(self._controllers)[:1]:
                    self._crash(name)
            case "lag":
                faults.lagging[WATCHED[fault.number % len(WATCHED)]] = end
            case "double" | "error" | "throttle" | "quota":
                faults.until[fault.kind] = end
            case "lose watches" | "expire":
                faults.no_watches = max(faults.no_watches, end)
                for resource in WATCHED:
                    faults.broken |= {(name, resource) for name in self._controllers}
                if fault.kind == "expire":
                    self._spawn(self._compact(fault.seconds))
            case "conflict":
                faults.conflicts = fault.number + 1
            case "lose answers":
                faults.lost_answers = fault.number // 3 + 1
            case "kill pod" | "evict pod" | "delete pod":
                self._hit_pod(fault)
            case "lose node" | "delete node":
                self._spawn(self._lose_node(fault))
            case "set clock":
                self.clock.offset = CLOCK_JUMPS[fault.number % len(CLOCK_JUMPS)]
                self._spawn(self._reset_clock(fault.seconds * 3))
            case "overlap":
                self._spawn(self._overlap(fault.seconds))

    async def _compact(self, seconds: float) -> None:
        """Forget the history while no watch is open, so that what happened in the meantime is known only by a list."""
        await asyncio.sleep(seconds)
        for resource in WATCHED:
            self.server.compact(resource)

    def _hit_pod(self, fault: Fault) -> None:
        pods = [
            pod for pod in self.server.all(PODS)
            if pod["status"].get("phase") == "Running" and not users.is_users(pod)
            and "running" in pod["status"]["containerStatuses"][0]["state"]
        ]  # fmt: skip
        if not pods:
            return
        pod = pods[fault.number % len(pods)]
        if fault.kind == "kill pod":
            self.kubelet.finish(pod, End(code=137))
        elif fault.kind == "evict pod":
            self.kubelet.evict(pod)
        else:
            self.server.remove(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], client="drain")

    async def _lose_node(self, fault: Fault) -> None:
        nodes = self.server.all(NODES)
        name = f"node-{fault.number % 2 + 1}"
        node = self.server.find(NODES, "", name)
        if node is None or len(nodes) - len(self.cluster.lost_nodes) < 2:
            return
        self.cluster.lost_nodes.add(name)
        self._set_ready(name, "Unknown")
        await asyncio.sleep(fault.seconds)
        if fault.kind == "delete node":
            self.kubelet.lose(name)
        self.cluster.lost_nodes.discard(name)
        self._set_ready(name, "True")

    def _set_ready(self, name: str, text: str) -> None:
        node = self.server.find(NODES, "", name)
        assert node is not None
        self.cluster.change(NODES, node, status={"conditions": [{"type": "Ready", "status": text}]})

    async def _reset_clock(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.clock.offset = 0.0

    async def _overlap(self, seconds: float) -> None:
        """Let a second controller begin before the first has ended, as after a Lease that was lost."""
        if len(self._controllers) != 1:
            return
        before = next(iter(self._controllers))
        self._start_controller()
        await asyncio.sleep(seconds)
        controller = self._controllers.pop(before, None)
        if controller is not None:
            self._check_runs(before, controller)
            self._log(f"{self.loop.time():7.2f} {before} stops")
            await controller.shut_down()
            if not self._controllers:
                # The second one was killed, and not replaced because the first one still ran.
                self._start_controller()

    # --- the cluster ----------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        def create(resource: Resource, name: str, **body: Any) -> None:
            metadata = {"name": name, **body.pop("metadata", {})}
            self.server.perform("create", resource, {"metadata": metadata, **body}, client="setup")

        for name in ("cdi", "default", "golden", "other"):
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

    async def _nature(self) -> None:
        chance = self.cluster.chance
        while True:
            self.server.changed.clear()
            steps = [step for actor in self._actors for step in actor.steps()]
            if steps:
                chance.choice(steps).act()
                await asyncio.sleep(chance.choice((0.002, 0.02, 0.2)))
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self.cluster.next_timer()):
                    await self.server.changed.wait()

    async def _settle(self) -> None:
        """Wait until nothing happens any more."""
        end = self.loop.time() + LIMIT
        while self.loop.time() < end:
            if self.violations:
                return  # what follows from the first one shows nothing new
            await asyncio.sleep(10.0)
            if self.loop.time() - max(self._last_write, self.faults.last_rejection) > self._quiet():
                return
        self.cluster.violate("quiescence_is_reached", f"something is written still after {LIMIT / 60:.0f} minutes")

    def _quiet(self) -> float:
        """Return for how long nothing must be written: longer than any backoff that applies."""
        waiting = any((body.get("status") or {}).get("phase") not in TERMINAL for body in self.server.all(DATA_VOLUMES))
        return LONG_QUIET if waiting else QUIET
