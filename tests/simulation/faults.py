"""Faults of a run: what a network, nodes, clocks and the deployment of a controller do to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cdi.api.kinds import (
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    JOBS,
    PODS,
    VOLUME_SNAPSHOTS,
    VOLUMES,
    Resource,
)
from tests.simulation.api_server import Refusal, Request
from tests.simulation.transport import LostError

KINDS = (
    "crash before", "crash after", "crash", "lag", "double", "lose watches", "expire", "conflict", "error", "throttle",
    "lose answers", "kill pod", "evict pod", "delete pod", "lose node", "delete node", "set clock", "overlap",
    "quota",
)  # fmt: skip
"""All kinds of faults."""
WATCHED: tuple[Resource, ...] = (
    PODS, CLAIMS, VOLUMES, DATA_VOLUMES, DATA_SOURCES, VOLUME_SNAPSHOTS, JOBS, DATA_IMPORT_CRONS
)  # fmt: skip
CLOCK_JUMPS = (-86_400.0, -3600.0, -30.0, 30.0, 3600.0, 86_400.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan."""

    at: float
    """Seconds since the start of the run."""
    kind: str
    seconds: float
    """How long it lasts."""
    number: int
    """Which of the candidates it hits: the n-th write, the n-th pod."""

    def __str__(self) -> str:
        return f"{self.at:7.2f} fault {self.kind} {self.number}, {self.seconds:.1f} s"


def generate(chance: random.Random, until: float) -> list[Fault]:
    """Return faults at random times."""
    return sorted(
        (
            Fault(
                at=round(chance.uniform(0.0, until), 2),
                kind=chance.choice(KINDS),
                seconds=round(chance.choice((0.5, 3.0, 15.0)) * chance.uniform(0.5, 1.5), 2),
                number=chance.randrange(12),
            )
            for _ in range(chance.choice((0, 1, 2, 3, 5)))
        ),
        key=lambda fault: fault.at,
    )


@dataclass(slots=True)
class Faults:
    """The faults that are in force on the network."""

    chance: random.Random
    now: Callable[[], float]
    crash: Callable[[str], None]
    """Kills the controller of this name."""
    fuse: int | None = None
    """Number of writes until the controller is killed."""
    fuse_before: bool = False
    """Whether it is killed before that write is carried out."""
    conflicts: int = 0
    """Number of writes that are still to be rejected."""
    lost_answers: int = 0
    """Number of writes whose answers are still to be lost."""
    until: dict[str, float] = field(default_factory=dict)
    """When a fault with a duration ends, by its kind."""
    lagging: dict[Resource, float] = field(default_factory=dict)
    """Until when no event of a resource is delivered."""
    broken: set[tuple[str, Resource]] = field(default_factory=set)
    """Watches that break at their next event, by client."""
    no_watches: float = 0.0
    """Until when no watch can be opened."""
    last_rejection: float = 0.0
    """When a request was rejected last; its client tries again."""

    def lasts(self, kind: str) -> bool:
        return self.until.get(kind, 0.0) > self.now()

    # --- `transport.Network` --------------------------------------------------------------------------------------

    async def before(self, request: Request) -> None:
        try:
            await self._reject(request)
        except (Refusal, LostError):
            self.last_rejection = self.now()
            raise

    async def _reject(self, request: Request) -> None:
        await asyncio.sleep(self.chance.choice((0.001, 0.003, 0.01)))
        if self.no_watches > self.now() and "watch" in request.query:
            raise LostError
        if self.lasts("error") and self.chance.random() < 0.5:
            if self.chance.random() < 0.5:
                raise Refusal(500, "InternalError", "etcdserver: request timed out")
            raise LostError
        if self.lasts("throttle") and self.chance.random() < 0.5:
            raise Refusal(429, "TooManyRequests", "too many requests", retry_after=1)
        if self.lasts("quota") and request.verb == "create" and request.resource == PODS:
            message = f'pods "{request.body["metadata"]["name"]}" is forbidden: exceeded quota: pods, limited: pods=1'
            raise Refusal(403, "Forbidden", message)
        if not request.writes:
            return
        if self.conflicts and request.verb in ("patch", "update"):
            self.conflicts -= 1
            raise Refusal(409, "Conflict", "the object has been modified")
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0 and self.fuse_before:
                self._burn(request)

    async def after(self, request: Request) -> None:
        if not request.writes:
            return
        if self.fuse is not None and self.fuse <= 0:
            self._burn(request)
        if self.lost_answers:
            self.lost_answers -= 1
            raise LostError
        await asyncio.sleep(self.chance.choice((0.0, 0.002)))

    async def delivery(self, request: Request) -> int:
        resource = request.resource
        await asyncio.sleep(self.chance.choice((0.0005, 0.002, 0.02)))
        while (left := self.lagging.get(resource, 0.0) - self.now()) > 0:  # noqa: ASYNC110  it may be prolonged
            await asyncio.sleep(left)
        if (request.client, resource) in self.broken:
            self.broken.discard((request.client, resource))
            raise LostError
        return 2 if self.lasts("double") else 1

    def _burn(self, request: Request) -> None:
        self.fuse = None
        self.crash(request.client)
