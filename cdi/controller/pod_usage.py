"""Pods that use a PVC, except our own, which are watched anyway (`InformerSet`).

Only the PVC names of pods that have not ended are kept, by PVC; a pod without PVCs only leaves its name in the cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Never

from cdi.api.annotation_types import annotations_of
from cdi.api.kinds import PODS, Object
from cdi.api.names import ANN_TEMPORARY_CONSUMER, APP, LABEL_APP
from cdi.api.phases import TERMINAL_PHASES
from cdi.controller.request import Scope
from cdi.kube.client import Client
from cdi.kube.reflector import Reflector, WatchEvent


class PodUsageTracker:
    """Tracker of pods in the namespaces that the scope includes."""

    def __init__(
        self,
        client: Client,
        scope: Scope,
        *,
        on_release: Callable[[str, str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Prepare the watches.

        Args:
            client: Client of the API server.
            scope: Namespaces to watch.
            on_release: Called with namespace and name of a PVC that a pod no longer uses.
            now: Called for the current time in seconds since the epoch.

        """
        self._freed = on_release
        self._now = now
        self._seen: dict[tuple[str, str], float] = {}
        """When a pod that uses a PVC was seen last, in seconds since the epoch."""
        self._begun = now()
        self._by_claim: dict[tuple[str, str], dict[str, str]] = {}
        """Pod names by UID, for each PVC."""
        self._reflectors = [
            Reflector(
                client,
                PODS,
                namespace=namespace,
                labels=f"{LABEL_APP}!={APP}",
                fields=",".join(f"status.phase!={phase}" for phase in TERMINAL_PHASES),
                strip=_claims,
                on_change=self.changed,
            )
            for namespace in (dict.fromkeys(scope.namespaces) or (None,))
        ]

    def pods_using(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Return the names of the pods that use a PVC or are about to."""
        return tuple(sorted(self._by_claim.get((namespace, claim), {}).values()))

    def unmounted_since(self, namespace: str, claim: str) -> float | None:
        """Return since when no pod has used a PVC, in seconds since the epoch; None if one does."""
        place = (namespace, claim)
        return None if self._by_claim.get(place) else self._seen.get(place, self._begun)

    def missing(self) -> str:
        """Return what has not been listed yet, as text; empty once everything has been."""
        waiting = [one for one in self._reflectors if not one.cache.synced.is_set()]
        return "; ".join(f"{PODS}: {one.failure.message if one.failure else 'not listed yet'}" for one in waiting)

    async def synced(self) -> None:
        """Wait until the initial lists are complete."""
        for reflector in self._reflectors:
            await reflector.cache.synced.wait()

    async def run(self) -> Never:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())
        raise AssertionError("no reflector ends")

    def changed(self, change: WatchEvent) -> None:
        """Record that a pod was created, deleted or has ended; its list of PVCs is immutable."""
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
    """Return the names of the namespace's pods that use this PVC or are about to."""
    return tuple(
        sorted(
            body["metadata"]["name"]
            for body in pods
            if claim in _claims(body)["claims"]
            and (body["metadata"].get("labels") or {}).get(LABEL_APP) != APP
            and (body.get("status") or {}).get("phase") not in TERMINAL_PHASES
        )
    )


def _claims(body: Object) -> Object:
    metadata, spec = body["metadata"], body.get("spec") or {}
    names = ("name", "namespace", "uid", "resourceVersion")
    # The first consumer that KubeVirt makes of a volume touches nothing in it.
    volumes = () if ANN_TEMPORARY_CONSUMER in annotations_of(body) else spec.get("volumes") or ()
    return {
        "metadata": {name: metadata[name] for name in names if name in metadata},
        "claims": tuple(claim for volume in volumes if (claim := _claim(volume))),
    }


def _claim(volume: Mapping[str, Any]) -> str:
    """Return the PVC of a pod's volume; empty if there is none.

    An ephemeral volume counts as none: its PVC is never a target.
    """
    return str((volume.get("persistentVolumeClaim") or {}).get("claimName") or "")
