"""Tasks of the controller while it is the leader: caches, work queue and concurrent reconciles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Never

from cdi.api.errors import CdiError, Conflict
from cdi.api.kinds import PODS, SERVICES, Resource
from cdi.api.names import INSTALLATION, prefixed_name
from cdi.controller import reasons
from cdi.controller.applier import PlanApplier
from cdi.controller.certificates import CertificateManager
from cdi.controller.clone_lister import InformerCloneLister
from cdi.controller.components import Component, ComponentHealth
from cdi.controller.event_recorder import EventRecorder
from cdi.controller.informers import InformerSet
from cdi.controller.lister import ClusterLister
from cdi.controller.metrics import Metrics
from cdi.controller.ownership import Ownership
from cdi.controller.pod_usage import PodUsageTracker
from cdi.controller.progress import Target, progress_client
from cdi.controller.proxy_exposure import ProxyExposure
from cdi.controller.reconcilers.dependencies import Dependencies
from cdi.controller.reconcilers.event_handlers import requests_for_released_pvc
from cdi.controller.reconcilers.registry import Reconcilers, initial_requests, requests_for
from cdi.controller.referenced_objects import ReferencedObjects
from cdi.controller.request import CONFIG, Request, Scope
from cdi.controller.result import TerminalError
from cdi.controller.transfer_lister import TransferLister
from cdi.controller.upload_certificates import PROXY, UploadCertificateRotator
from cdi.controller.worker_tracker import WorkerTracker
from cdi.controller.workqueue import Reason, WorkQueue
from cdi.kube.certificates import Lifetimes
from cdi.kube.client import Client
from cdi.kube.jwt import SIGNING_KEY, ensure_signing_key
from cdi.kube.reflector import WatchEvent
from cdi.logs import bind, fields
from cdi.reconcile.cdi.config import active_cdi
from cdi.reconcile.settings import WorkerPodConfig

SHUTDOWN_TIMEOUT = 20.0
"""Seconds that running reconciles have to finish when the process is asked to stop."""
TOKEN_KEY_REFRESH, _RETRY = 300.0, 10.0
"""Seconds until the signing key of tokens is read again, if it is known and if it is not."""
RECONCILE_TIMEOUT = 120.0
"""Timeout of one reconcile in seconds, which includes the client's retries while the API server is unavailable."""

log = logging.getLogger("cdi.controller")


class Manager:
    """Tasks of one term of leadership."""

    def __init__(
        self,
        client: Client,
        *,
        scope: Scope,
        pods: WorkerPodConfig,
        install_namespace: str,
        prefix: str = INSTALLATION,
        version: str,
        components: tuple[Component, ...] = (),
        workers: int,
        metrics: Metrics,
        stop: asyncio.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Wire up caches, queue and reconcilers.

        Args:
            client: Client of the API server.
            scope: Objects that this controller handles.
            pods: Settings of worker pods from the command line.
            install_namespace: Namespace of the installation.
            prefix: First part of the names of the installation's Secrets.
            version: Version of the controller.
            components: Components whose health the CDI object shows.
            workers: Number of concurrent reconciles.
            metrics: Metrics to update.
            stop: If it is set when `run` is cancelled, running reconciles are finished first.
            now: Called by reconcilers for the current time in seconds since the epoch.

        """
        self.queue: WorkQueue[Request] = WorkQueue()
        self.watches = InformerSet(client, scope, install_namespace=install_namespace, on_change=self._on_event)
        self._client = client
        self._workers = workers
        self._metrics = metrics
        self._stop = stop
        self._synced = False
        self._ended = asyncio.Event()
        self._users = PodUsageTracker(client, scope, on_release=self._on_pvc_released)
        self._worker_pods = WorkerTracker(client, self.watches, metrics, on_progress=self._on_progress)
        inputs = ReferencedObjects(client, on_change=lambda key: self.queue.add(key, reason=reasons.REFERENCE_CHANGED))
        self._observed = ClusterLister(
            self.watches,
            self._worker_pods.progress,
            inputs,
            self._users,
            pods=pods,
            install_namespace=install_namespace,
        )
        self._clones = InformerCloneLister(self.watches, self._observed, self._users)
        self._install_namespace = install_namespace
        self._key_secret = prefixed_name(SIGNING_KEY, prefix)
        certifier = CertificateManager(client, install_namespace, self._lifetimes, prefix=prefix)
        ownership = Ownership(self.watches, scope)
        self._uploads = UploadCertificateRotator(
            client,
            certifier,
            install_namespace,
            lifetimes=self._lifetimes,
            services=lambda: filter(ownership.handles_volume, self.watches.values(SERVICES)),
            override=self._observed.upload_proxy_override,
            exposed=lambda: self._exposure.host(),  # noqa: PLW0108  it is created below, with `wake` of this one
            changed=lambda: self.queue.add(CONFIG, reason=reasons.UPLOAD_PROXY_CHANGED),
        )
        service = prefixed_name(PROXY, prefix)
        self._exposure = ProxyExposure(client, install_namespace, service, changed=self._uploads.wake)
        recorder = EventRecorder(client)
        self._reconcilers = Reconcilers(
            Dependencies(
                client=client,
                caches=self.watches,
                lister=self._observed,
                inputs=inputs,
                clones=self._clones,
                transfers=TransferLister(self.watches, self._users),
                applier=PlanApplier(client, self.watches, certifier, recorder),
                recorder=recorder,
                uploads=self._uploads,
                components=ComponentHealth(client, install_namespace, version, components),
                scope=scope,
                ownership=ownership,
                install_namespace=install_namespace,
                prefix=prefix,
                now=now,
            )
        )

    def unsynced(self) -> str:
        """Return what is not in sync yet, as text; empty once everything is."""
        return "; ".join(filter(None, (self.watches.unsynced(), self._users.missing())))

    async def run(self) -> Never:
        """Run until cancelled."""
        async with progress_client() as fetch, asyncio.TaskGroup() as group:
            group.create_task(self.watches.run())
            group.create_task(self._users.run())
            await self.watches.wait_for_cache_sync()
            await self._users.synced()
            self._enqueue(initial_requests(self.watches), reasons.STARTED)
            self._synced = True
            log.info("caches are synchronized", extra=fields(keys=len(self.queue)))
            group.create_task(self._worker_pods.run(fetch))
            group.create_task(self._exposure.run())
            group.create_task(self._uploads.run())
            group.create_task(self._refresh_token_key())
            for _ in range(self._workers):
                group.create_task(self._work())
            try:
                await asyncio.Future()
            finally:
                if self._stop.is_set():
                    await self._drain()
        raise AssertionError("this task ends only by cancellation")

    def _lifetimes(self) -> Lifetimes:
        return Lifetimes.of(active_cdi(self._observed.cdis()))

    async def _refresh_token_key(self) -> None:
        """Read the signing key of tokens regularly, so that a recreated one is noticed."""
        while True:
            try:
                self._clones.key = await ensure_signing_key(self._client, self._install_namespace, self._key_secret)
            except CdiError as error:
                log.warning("cannot read the token signing key, retrying", extra=fields(reason=error))
            await asyncio.sleep(TOKEN_KEY_REFRESH if self._clones.key is not None else _RETRY)

    async def _drain(self) -> None:
        """Wait until the running reconciles have finished; no further key is taken from the queue."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                while self.queue.processing:
                    self._ended.clear()
                    await self._ended.wait()

    # --- changes ----------------------------------------------------------------------------------------------------

    def _on_event(self, resource: Resource, change: WatchEvent) -> None:
        self._observed.changed(resource, change)
        if resource == PODS:
            self._worker_pods.changed(change)
        if self._synced:  # before that, `run` adds all requests itself once the caches are in sync
            self._enqueue(requests_for(resource, change, self.watches), reasons.object_changed(resource, change))

    def _on_pvc_released(self, namespace: str, claim: str) -> None:
        if self._synced:
            released = requests_for_released_pvc(namespace, claim, self.watches)
            self._enqueue(released, reasons.pvc_released(namespace, claim))

    def _on_progress(self, target: Target) -> None:
        reported = reasons.progress_reported(target.namespace, target.name)
        self._enqueue(self._worker_pods.volumes_of(target), reported)

    def _enqueue(self, requests: Iterable[Request], reason: Reason) -> None:
        for request in requests:
            self.queue.add(request, reason=reason)

    # --- reconciles -------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            request = await self.queue.get()
            try:
                if not self._stop.is_set():
                    with bind(key=request, because="; ".join(map(str, self.queue.reasons(request)))):
                        await self._process_next(request)
            finally:
                self.queue.done(request)
                self._ended.set()

    async def _process_next(self, request: Request) -> None:
        """Reconcile one request; its errors do not affect other requests."""
        known = self.queue.reasons(request)
        try:
            with self._metrics.observe_reconcile(request.kind, trigger=known[0].trigger if known else ""):
                async with asyncio.timeout(RECONCILE_TIMEOUT):
                    result = await self._reconcilers.reconcile(request)
        except TerminalError as error:
            # Only a change of the object helps, and that adds the request again.
            log.error("invalid object, waiting for a change", extra=fields(key=request, reason=error.error))  # noqa: TRY400  no traceback needed
            await self._report_invalid(request, error)
        except Exception as error:  # noqa: BLE001  the next reconcile may succeed, and other requests must go on
            self._retry(request, error)
        else:
            self.queue.forget(request)
            pause = result.requeue_after
            log.debug("reconciled", extra=fields(key=request, requeue_after=pause))
            if pause is not None:
                self.queue.add(request, pause, reason=reasons.requeued(pause))

    def _retry(self, request: Request, error: Exception) -> None:
        """Add a request again after an error that may be gone by then, with a backoff."""
        cause = error.code if isinstance(error, CdiError) else type(error).__name__
        pause = round(self.queue.retry(request, reason=reasons.retried(cause)), 1)
        match error:
            case Conflict():
                # The cached state was outdated. The watch event with the new state has usually added the request again.
                log.debug("cached state was outdated, retrying", extra=fields(key=request, reason=error, pause=pause))
            case CdiError():
                log.warning("reconcile failed, retrying", extra=fields(key=request, reason=error, pause=pause))
            case TimeoutError():
                log.warning("reconcile failed, retrying", extra=fields(key=request, reason="timed out", pause=pause))
            case _:
                log.error("unexpected error, retrying", extra=fields(key=request, pause=pause), exc_info=error)

    async def _report_invalid(self, request: Request, error: TerminalError) -> None:
        try:
            await self._reconcilers.report_invalid(request, error.error)
        except CdiError as failure:
            # The API server may reject every write of an invalid object; then only the event reports the error.
            log.warning("cannot write the status of an invalid object", extra=fields(key=request, reason=failure))
