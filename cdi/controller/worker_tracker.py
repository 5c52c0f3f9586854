"""Tracker of worker pods: polls the progress of running ones, stores their journals and counts ended attempts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, Never

from cdi.api.annotations import STORED_JOURNAL
from cdi.api.errors import NotFound
from cdi.api.kinds import CLAIMS, PODS, Object
from cdi.api.names import LABEL_COMPONENT
from cdi.controller.informers import InformerSet
from cdi.controller.metrics import SUCCEEDED, Metrics
from cdi.controller.progress import FetchProgress, ProgressPoller, Target
from cdi.controller.reconcilers.event_handlers import owners_of
from cdi.controller.request import Request
from cdi.kube.client import Client
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.pods.status import WORKERS, container_status, worker_from_pod
from cdi.reconcile.pods.types import Worker

PROGRESS_PORT: Final = 8443


class WorkerTracker:
    """Worker pods that run, and what is known of them beyond their objects."""

    def __init__(
        self, client: Client, caches: InformerSet, metrics: Metrics, *, on_progress: Callable[[Target], None]
    ) -> None:
        """Start without pods.

        Args:
            client: Client of the API server.
            caches: Watch caches.
            metrics: Metrics in which ended attempts are counted.
            on_progress: Called with a pod that has reported new progress.

        """
        self._client = client
        self._caches = caches
        self._metrics = metrics
        self.progress = ProgressPoller(on_progress=on_progress, save_journal=self._save_journal)

    def changed(self, change: WatchEvent) -> None:
        """Poll the progress of a running worker, and count the outcome of one that has ended."""
        pod = change.object
        uid = pod["metadata"]["uid"]
        if change.type == "DELETED":
            self.progress.forget(uid)
        elif _is_running(pod):
            self.progress.track(_target(pod))
        else:
            self.progress.untrack(uid)
        if change.old is not None and (ended := _ended_attempt(pod)) is not None:
            before = _ended_attempt(change.old)
            if before is None or before.attempt != ended.attempt:
                assert ended.outcome is not None
                self._metrics.count_attempt(SUCCEEDED if ended.outcome.failure is None else ended.outcome.failure.code)

    def volumes_of(self, target: Target) -> Iterator[Request]:
        """Yield the volumes that a worker pod exists for."""
        pod = self._caches.get(PODS, target.namespace, target.name)
        if pod is not None:
            yield from owners_of(pod, self._caches)

    async def run(self, fetch: FetchProgress) -> Never:
        """Poll until cancelled."""
        await self.progress.run(fetch)

    async def _save_journal(self, target: Target, journal: str) -> None:
        """Store a journal in an annotation of the PVC that the pod fills, as the PVC outlives the pod."""
        pod = self._caches.get(PODS, target.namespace, target.name)
        owners = (pod or {}).get("metadata", {}).get("ownerReferences") or ()
        for owner in owners:
            if owner.get("kind") == CLAIMS.kind and owner.get("controller"):
                metadata = {"uid": owner["uid"], "annotations": STORED_JOURNAL.write(journal)}
                with contextlib.suppress(NotFound):
                    patched = await self._client.patch(CLAIMS, target.namespace, owner["name"], {"metadata": metadata})
                    self._caches.record_write(CLAIMS, patched)


def _ended_attempt(pod: Object) -> Worker | None:
    """Return the newest attempt in a pod that has ended; None if none has."""
    worker = worker_from_pod(pod)
    return worker.previous if worker is not None and worker.running else worker


def _is_running(pod: Object) -> bool:
    status = pod.get("status") or {}
    labels = pod["metadata"].get("labels") or {}
    return bool(
        labels.get(LABEL_COMPONENT) in WORKERS
        and status.get("phase") == "Running"
        and status.get("podIP")
        and "running" in (container_status(pod).get("state") or {})
    )


def _target(pod: Object) -> Target:
    metadata, address = pod["metadata"], str(pod["status"]["podIP"])
    containers = pod["spec"].get("containers") or ()
    return Target(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        address=f"[{address}]:{PROGRESS_PORT}" if ":" in address else f"{address}:{PROGRESS_PORT}",
        keeps_journal=any(one.get("volumeDevices") for one in containers),
    )
