"""What the simulated parts of a cluster share: the API server, content of volumes, timers."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cdi.api.kinds import CLAIMS, PODS, VOLUMES, Object, Resource
from cdi.api.quantity import Quantity
from tests.simulation.api_server import ApiServer

TERMINAL = ("Succeeded", "Failed")


@dataclass(slots=True)
class Disk:
    """Content of a PersistentVolume."""

    content: str = ""
    """What its last finished writer wrote; empty for nothing."""
    complete: bool = False
    writers: set[str] = field(default_factory=set)
    """UIDs of the pods that are writing."""
    fills: int = 0
    """How often a writer has finished it."""
    filler: str = ""
    """UID of the pod that has finished it last."""
    lost_ends: int = 0
    """How many of the finished pods went with their node, so that no controller may ever have seen their end."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a part of the cluster can do now."""

    name: str
    act: Callable[[], object]


class Actor(Protocol):
    """A part of the cluster."""

    def steps(self) -> Iterator[Step]:
        """Yield what it can do now."""


class Cluster:
    """The objects, and what is not in any object."""

    def __init__(
        self, server: ApiServer, chance: random.Random, now: Callable[[], float], stamp: Callable[[], str]
    ) -> None:
        self.server = server
        self.chance = chance
        self.now = now
        """Seconds since the start of the run."""
        self.stamp = stamp
        self.disks: dict[str, Disk] = {}
        """By UID of the PersistentVolume."""
        self.snapshots: dict[str, Disk] = {}
        """Content of VolumeSnapshots, by UID."""
        self.timers: dict[str, float] = {}
        """When something that takes time is due, by its name."""
        self.lost_nodes: set[str] = set()
        self.violations: list[str] = []
        self.violated: Callable[[str], None] = lambda _: None
        """Called with each violation."""

    def violate(self, name: str, text: str) -> None:
        self.violations.append(f"{name}: {text}")
        self.violated(f"{name}: {text}")

    # --- objects --------------------------------------------------------------------------------------------------

    def change(
        self, resource: Resource, body: Object, *, subresource: str = "", client: str = "kubernetes", **patch: Any
    ) -> Object:
        """Merge a patch into an object."""
        metadata = body["metadata"]
        patch.setdefault("metadata", {})
        patch["metadata"] = {
            **patch["metadata"], "name": metadata["name"], "namespace": metadata.get("namespace"), "uid": metadata["uid"]
        }  # fmt: skip
        if not metadata.get("namespace"):
            del patch["metadata"]["namespace"]
        return self.server.perform("patch", resource, patch, client=client, subresource=subresource)

    def claim(self, namespace: str, name: str) -> Object | None:
        return self.server.find(CLAIMS, namespace, name)

    def volume_of(self, claim: Object | None) -> Object | None:
        """Return the PersistentVolume that a PVC is bound to."""
        if claim is None or claim["status"].get("phase") != "Bound":
            return None
        volume = self.server.find(VOLUMES, "", claim["spec"].get("volumeName") or "")
        if volume is None or (volume["spec"].get("claimRef") or {}).get("uid") != claim["metadata"]["uid"]:
            return None
        return volume

    def disk_of(self, claim: Object | None) -> Disk | None:
        volume = self.volume_of(claim)
        return None if volume is None else self.disks[volume["metadata"]["uid"]]

    def pods_using(self, namespace: str, claim: str) -> list[Object]:
        return [
            pod
            for pod in self.server.all(PODS)
            if pod["metadata"]["namespace"] == namespace and claim in claims_of(pod)
        ]

    # --- time -----------------------------------------------------------------------------------------------------

    def due(self, name: str, shortest: float, longest: float) -> bool:
        """Return whether a timer has expired, which is set at the first call."""
        moment = self.timers.get(name)
        if moment is None:
            moment = self.timers[name] = self.now() + self.chance.uniform(shortest, longest)
        return moment <= self.now()

    def next_timer(self) -> float | None:
        """Return the time of the next timer; expired ones are dropped once nothing is due by them."""
        coming = [moment for moment in self.timers.values() if moment > self.now()]
        return min(coming, default=None)


def claims_of(pod: Object) -> list[str]:
    """Return the names of a pod's PVCs."""
    return [
        one["persistentVolumeClaim"]["claimName"]
        for one in pod["spec"].get("volumes") or ()
        if "persistentVolumeClaim" in one
    ]


def written_claims(pod: Object) -> list[str]:
    """Return the names of the PVCs that a pod's containers may write to."""
    read_only = {
        one["name"]
        for container in pod["spec"]["containers"]
        for one in container.get("volumeMounts") or ()
        if one.get("readOnly")
    }
    return [
        one["persistentVolumeClaim"]["claimName"]
        for one in pod["spec"].get("volumes") or ()
        if "persistentVolumeClaim" in one
        and not one["persistentVolumeClaim"].get("readOnly")
        and one["name"] not in read_only
    ]


def size_of(claim: Object) -> int:
    """Return the bytes that a PVC requests."""
    return bytes_of(claim["spec"]["resources"]["requests"]["storage"])


@functools.cache
def bytes_of(text: str) -> int:
    """Return the bytes of a quantity."""
    return Quantity.parse(text).bytes
