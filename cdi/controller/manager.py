"""Controller while it is the leader: caches, work queue and reconciles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Never

from cdi.api.errors import AdmissionDenied, CdiError, Conflict, InvalidManifest, NotFound
from cdi.api.names import INSTALLATION, LABEL_COMPONENT, prefixed_name
from cdi.controller.certificates import CertificateManager
from cdi.controller.clone_lister import InformerCloneLister
from cdi.controller.components import Component, ComponentHealth
from cdi.controller.handlers import initial_requests, owners_of, requests_for
from cdi.controller.informers import InformerSet
from cdi.controller.lister import ClusterLister
from cdi.controller.metrics import SUCCEEDED, Metrics
from cdi.controller.pod_usage import PodUsageTracker
from cdi.controller.progress import ProgressPoller, Target, progress_client
from cdi.controller.proxy_exposure import ProxyExposure
from cdi.controller.reconcilers import Reconcilers
from cdi.controller.referenced_objects import ReferencedObjects
from cdi.controller.request import CONFIG, Request, Scope, datavolume
from cdi.controller.transfer_lister import TransferLister, requests_touching
from cdi.controller.upload_certificates import PROXY, UploadCertificateRotator
from cdi.controller.workqueue import WorkQueue
from cdi.kube.certificates import Lifetimes
from cdi.kube.client import Client
from cdi.kube.jwt import SIGNING_KEY, ensure_signing_key
from cdi.kube.reflector import WatchEvent
from cdi.kube.resources import CLAIMS, PODS, SERVICES, Object, Resource
from cdi.logs import fields
from cdi.reconcile.cdi.configuration import active_cdi
from cdi.reconcile.pods.builder import ANN_STORED_JOURNAL, CONTAINER
from cdi.reconcile.pods.status import WORKERS, worker_from_pod
from cdi.reconcile.pods.types import Worker
from cdi.reconcile.settings import WorkerPodConfig

PROGRESS_PORT = 8443
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

        """
        self.queue: WorkQueue[Request] = WorkQueue()
        self.watches = InformerSet(client, scope, install_namespace=install_namespace, on_change=self._on_event)
        self._client = client
        self._workers = workers
        self._metrics = metrics
        self._stop = stop
        self._synced = False
        self._ended = asyncio.Event()
        self._inputs = ReferencedObjects(client, on_change=self.queue.add)
        self._users = PodUsageTracker(client, scope, on_release=self._on_pvc_released)
        self._progresses = ProgressPoller(on_progress=self._on_progress, save_journal=self._persist_journal)
        self._observed = ClusterLister(
            self.watches,
            self._progresses,
            self._inputs,
            self._users,
            pods=pods,
            install_namespace=install_namespace,
        )
        self._clones = InformerCloneLister(self.watches, self._observed, self._users)
        self._install_namespace = install_namespace
        self._key_secret = prefixed_name(SIGNING_KEY, prefix)
        certifier = CertificateManager(client, install_namespace, self._lifetimes, prefix=prefix)
        self._uploads = UploadCertificateRotator(
            client,
            certifier,
            install_namespace,
            lifetimes=self._lifetimes,
            services=lambda: (one for one in self.watches.values(SERVICES) if self._reconcilers.owns(one)),
            override=self._observed.upload_proxy_override,
            exposed=lambda: self._exposure.host(),  # noqa: PLW0108  it is created below, with `wake` of this one
            changed=lambda: self.queue.add(CONFIG),
        )
        service = prefixed_name(PROXY, prefix)
        self._exposure = ProxyExposure(client, install_namespace, service, changed=self._uploads.wake)
        others = ComponentHealth(client, install_namespace, version, components)
        self._reconcilers = Reconcilers(
            client,
            self.watches,
            self._observed,
            self._inputs,
            self._clones,
            TransferLister(self.watches, self._users),
            certifier,
            self._uploads,
            scope=scope,
            components=others,
            install_namespace=install_namespace,
            prefix=prefix,
        )

    def unsynced(self) -> str:
        """Return what is not in sync yet, as text; empty once everything is."""
        return "; ".join(filter(None, (self.watches.unsynced(), self._users.missing())))

    async def run(self) -> Never:
        """Run until cancelled."""
        async with progress_client() as ask, asyncio.TaskGroup() as group:
            group.create_task(self.watches.run())
            group.create_task(self._users.run())
            await self.watches.wait_for_cache_sync()
            await self._users.synced()
            for key in initial_requests(self.watches):
                self.queue.add(key)
            self._synced = True
            log.info("caches are synchronized", extra=fields(keys=len(self.queue)))
            group.create_task(self._progresses.run(ask))
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

    # --- event handlers ---------------------------------------------------------------------------------------------

    def _on_event(self, resource: Resource, change: WatchEvent) -> None:
        self._observed.changed(resource, change)
        if resource == PODS:
            self._follow(change)
        if self._synced:  # before that, `run` adds all keys itself once the caches are in sync
            for key in requests_for(resource, change, self.watches):
                self.queue.add(key)

    def _on_pvc_released(self, namespace: str, claim: str) -> None:
        if self._synced:
            self.queue.add(datavolume(namespace, claim))
            for key in (
                *self.watches.waiting.clones_of(namespace, claim),
                *requests_touching(self.watches, (namespace, claim)),
            ):
                self.queue.add(key)

    def _follow(self, change: WatchEvent) -> None:
        """Poll the progress of a running worker, and count the outcome of one that has ended."""
        pod = change.object
        uid = pod["metadata"]["uid"]
        if change.type == "DELETED":
            self._progresses.forget(uid)
        elif _runs(pod):
            self._progresses.track(_target(pod))
        else:
            self._progresses.untrack(uid)
        if change.old is not None:
            ended, before = _ended_attempt(pod), _ended_attempt(change.old)
            if ended is not None and (before is None or before.attempt != ended.attempt):
                assert ended.outcome is not None
                self._metrics.count_attempt(SUCCEEDED if ended.outcome.failure is None else ended.outcome.failure.code)

    def _on_progress(self, target: Target) -> None:
        pod = self.watches.get(PODS, target.namespace, target.name)
        if pod is not None:
            for key in owners_of(pod, self.watches):
                self.queue.add(key)

    async def _persist_journal(self, target: Target, journal: str) -> None:
        """Store a journal in an annotation of the PVC that the pod fills, as the PVC outlives the pod."""
        pod = self.watches.get(PODS, target.namespace, target.name)
        owners = (pod or {}).get("metadata", {}).get("ownerReferences") or ()
        for owner in owners:
            if owner.get("kind") == CLAIMS.kind and owner.get("controller"):
                metadata = {"uid": owner["uid"], "annotations": {ANN_STORED_JOURNAL: journal}}
                with contextlib.suppress(NotFound):
                    made = await self._client.patch(CLAIMS, target.namespace, owner["name"], {"metadata": metadata})
                    self.watches.record_write(CLAIMS, made)

    # --- reconciles -------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                if not self._stop.is_set():
                    await self._process_next(key)
            finally:
                self.queue.done(key)
                self._ended.set()

    async def _process_next(self, key: Request) -> None:
        """Reconcile one key; its errors do not affect other keys."""
        try:
            with self._metrics.observe_reconcile(key.kind):
                async with asyncio.timeout(RECONCILE_TIMEOUT):
                    pause = await self._reconcilers.reconcile(key)
        except Conflict as error:
            # The cached state was outdated. The watch event with the new state has usually added the key already.
            self.queue.retry(key)
            log.debug("again", extra=fields(key=key, reason=error))
        except AdmissionDenied as error:
            # An admission policy that denies a status or an annotation now may be changed later.
            pause = self.queue.retry(key)
            log.warning("reconcile failed, retrying", extra=fields(key=key, reason=error, pause=round(pause, 1)))
        except InvalidManifest as error:
            # The error persists until the object is changed, and that adds the key again.
            log.error("invalid object, waiting for a change", extra=fields(key=key, reason=error))  # noqa: TRY400  no traceback needed
            await self._report_invalid(key, error)
        except TimeoutError:
            pause = self.queue.retry(key)
            log.warning("reconcile failed, retrying", extra=fields(key=key, reason="timed out", pause=round(pause, 1)))
        except CdiError as error:
            pause = self.queue.retry(key)
            log.warning("reconcile failed, retrying", extra=fields(key=key, reason=error, pause=round(pause, 1)))
        except Exception:
            pause = self.queue.retry(key)
            log.exception("unexpected error, retrying", extra=fields(key=key, pause=round(pause, 1)))
        else:
            self.queue.forget(key)
            if pause is not None:
                self.queue.add(key, pause)

    async def _report_invalid(self, key: Request, error: InvalidManifest) -> None:
        try:
            await self._reconcilers.report_invalid(key, error)
        except CdiError as trouble:
            # The API server may reject every write of an invalid object; then only the event reports the error.
            log.warning("cannot write the status of an invalid object", extra=fields(key=key, reason=trouble))


def _ended_attempt(pod: Object) -> Worker | None:
    """Return the newest attempt in a pod that has ended; None if none has."""
    worker = worker_from_pod(pod)
    return worker.previous if worker is not None and worker.running else worker


def _runs(pod: Object) -> bool:
    status = pod.get("status") or {}
    labels = pod["metadata"].get("labels") or {}
    return bool(
        labels.get(LABEL_COMPONENT) in WORKERS
        and status.get("phase") == "Running"
        and status.get("podIP")
        and any(
            one.get("name") == CONTAINER and "running" in (one.get("state") or {})
            for one in status.get("containerStatuses") or ()
        )
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
