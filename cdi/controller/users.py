"""Which pods have the volume of a claim: everybody's but ours, which are followed for their own sake (`Watches`).

Of each that has not ended its claims are kept, by claim; a pod without one leaves nothing here but its name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Never

from cdi.api.names import APP, LABEL_APP
from cdi.controller.keys import Scope
from cdi.kube.client import Client
from cdi.kube.reflector import Change, Reflector
from cdi.kube.resources import PODS, Object

_ENDED = ("Succeeded", "Failed")


class Users:
    """As far as the scope reaches."""

    def __init__(
        self, client: Client, scope: Scope, *, freed: Callable[[str, str], None], now: Callable[[], float] = time.time
    ) -> None:
        """`freed` is told namespace and name of a claim that one user less has."""
        self._freed = freed
        self._now = now
        self._seen: dict[tuple[str, str], float] = {}
        """When a user of a claim was seen last, seconds since the epoch."""
        self._begun = now()
        self._by_claim: dict[tuple[str, str], dict[str, str]] = {}
        """By uid their names."""
        self._reflectors = [
            Reflector(
                client,
                PODS,
                namespace=namespace,
                labels=f"{LABEL_APP}!={APP}",
                fields=",".join(f"status.phase!={phase}" for phase in _ENDED),
                strip=_claims,
                on_change=self.changed,
            )
            for namespace in (dict.fromkeys(scope.namespaces) or (None,))
        ]

    def of(self, namespace: str, claim: str) -> tuple[str, ...]:
        """The names of the pods that have a claim or are about to."""
        return tuple(sorted(self._by_claim.get((namespace, claim), {}).values()))

    def undisturbed(self, namespace: str, claim: str) -> float | None:
        """Since when no pod has had a claim's volume, seconds since the epoch; None while one has."""
        place = (namespace, claim)
        return None if self._by_claim.get(place) else self._seen.get(place, self._begun)

    def missing(self) -> str:
        """What is not listed yet, in words; empty once all is."""
        waiting = [one for one in self._reflectors if not one.cache.synced.is_set()]
        return "; ".join(f"{PODS}: {one.failure.message if one.failure else 'not listed yet'}" for one in waiting)

    async def synced(self) -> None:
        """Until everything that there was at the start is here."""
        for reflector in self._reflectors:
            await reflector.cache.synced.wait()

    async def run(self) -> Never:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())
        raise AssertionError("no reflector ends")

    def changed(self, change: Change) -> None:
        """A pod came, went or ended; its claims never change."""
        metadata = change.object["metadata"]
        for claim in change.object["claims"]:
            place = (metadata["namespace"], claim)
            self._seen[place] = self._now()
            if change.type == "DELETED":
                pods = self._by_claim.get(place, {})
                if pods.pop(metadata["uid"], None) is not None:
                    if not pods:
                        del self._by_claim[place]
                    self._freed(*place)
            else:
                self._by_claim.setdefault(place, {})[metadata["uid"]] = metadata["name"]


def users_of(pods: Iterable[Object], claim: str) -> tuple[str, ...]:
    """The names of those of a namespace's pods that have a claim of it or are about to."""
    return tuple(
        sorted(
            body["metadata"]["name"]
            for body in pods
            if claim in _claims(body)["claims"]
            and (body["metadata"].get("labels") or {}).get(LABEL_APP) != APP
            and (body.get("status") or {}).get("phase") not in _ENDED
        )
    )


def _claims(body: Object) -> Object:
    metadata, spec = body["metadata"], body.get("spec") or {}
    names = ("name", "namespace", "uid", "resourceVersion")
    return {
        "metadata": {name: metadata[name] for name in names if name in metadata},
        "claims": tuple(claim for volume in spec.get("volumes") or () if (claim := _claim(volume))),
    }


def _claim(volume: Mapping[str, Any]) -> str:
    """Behind a pod's volume; empty for none.  What is made for a pod alone is never a target of ours."""
    return str((volume.get("persistentVolumeClaim") or {}).get("claimName") or "")
