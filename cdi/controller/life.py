"""Controller while it is the leader: caches, work queue and reconciles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Never

from cdi.api.errors import AdmissionDenied, CdiError, Conflict, InvalidManifest, NotFound
from cdi.api.names import INSTALLATION, LABEL_COMPONENT, own_name
from cdi.controller.certifier import Certifier
from cdi.controller.clones import ObservedClones
from cdi.controller.inputs import Inputs
from cdi.controller.keys import CONFIG, Key, Scope, volume
from cdi.controller.logs import fields
from cdi.controller.mapping import affected, everything, owners_of
from cdi.controller.metrics import SUCCEEDED, Metrics
from cdi.controller.observe import Observed
from cdi.controller.parts import Part, Parts
from cdi.controller.progress import Progresses, Target, asking
from cdi.controller.queue import Queue
from cdi.controller.reconcilers import Reconcilers
from cdi.controller.transfers import ObservedTransfers, concerned
from cdi.controller.upload_certificates import UploadCertificates
from cdi.controller.users import Users
from cdi.controller.watches import Watches
from cdi.kube.client import Client
from cdi.kube.lifetimes import Lifetimes
from cdi.kube.reflector import Change
from cdi.kube.resources import CLAIMS, PODS, SERVICES, Object, Resource
from cdi.kube.tokens import SIGNING_KEY, ensure_signing_key
from cdi.reconcile.configuration import active_cdi
from cdi.reconcile.pod import ANN_STORED_JOURNAL, CONTAINER
from cdi.reconcile.pod_facts import WORKERS, observe_pod
from cdi.reconcile.world import Pods

PROGRESS_PORT = 8443
GRACE = 20.0
"""Seconds that running reconciles have to finish when the process is asked to stop."""
KEY_EVERY, KEY_SOON = 300.0, 10.0
"""Seconds until the signing key of tokens is read again, if it is known and if it is not."""
LONGEST = 120.0
"""Timeout of one reconcile in seconds, which includes the client's retries while the API server is unavailable."""

log = logging.getLogger("cdi.controller")


class Life:
    """Tasks of one term of leadership."""

    def __init__(
        self,
        client: Client,
        *,
        scope: Scope,
        pods: Pods,
        install_namespace: str,
        prefix: str = INSTALLATION,
        version: str,
        parts: tuple[Part, ...] = (),
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
            parts: Components whose health the CDI object shows.
            workers: Number of concurrent reconciles.
            metrics: Metrics to update.
            stop: If it is set when `run` is cancelled, running reconciles are finished first.

        """
        self.queue: Queue[Key] = Queue()
        self.watches = Watches(client, scope, on_change=self._changed)
        self._client = client
        self._workers = workers
        self._metrics = metrics
        self._stop = stop
        self._synced = False
        self._ended = asyncio.Event()
        self._inputs = Inputs(client, news=self.queue.add)
        self._users = Users(client, scope, freed=self._freed)
        self._progresses = Progresses(told=self._told, keep=self._keep)
        self._observed = Observed(
            self.watches,
            self._progresses,
            self._inputs,
            self._users,
            pods=pods,
            install_namespace=install_namespace,
        )
        self._clones = ObservedClones(self.watches, self._observed, self._users)
        self._install_namespace = install_namespace
        self._key_secret = own_name(SIGNING_KEY, prefix)
        certifier = Certifier(client, install_namespace, self._lifetimes, prefix=prefix)
        self._uploads = UploadCertificates(
            client,
            certifier,
            install_namespace,
            lifetimes=self._lifetimes,
            services=lambda: (one for one in self.watches.values(SERVICES) if self._reconcilers.acts_for(one)),
            override=self._observed.upload_proxy_override,
            changed=lambda: self.queue.add(CONFIG),
        )
        others = Parts(client, install_namespace, version, parts)
        self._reconcilers = Reconcilers(
            client,
            self.watches,
            self._observed,
            self._inputs,
            self._clones,
            ObservedTransfers(self.watches, self._users),
            certifier,
            self._uploads,
            scope=scope,
            parts=others,
        )

    def missing(self) -> str:
        """Return what is not in sync yet, as text; empty once everything is."""
        return "; ".join(filter(None, (self.watches.missing(), self._users.missing())))

    async def run(self) -> Never:
        """Run until cancelled."""
        async with asking() as ask, asyncio.TaskGroup() as group:
            group.create_task(self.watches.run())
            group.create_task(self._users.run())
            await self.watches.synced()
            await self._users.synced()
            for key in everything(self.watches):
                self.queue.add(key)
            self._synced = True
            log.info("caches are synchronized", extra=fields(keys=len(self.queue)))
            group.create_task(self._progresses.run(ask))
            group.create_task(self._uploads.run())
            group.create_task(self._keep_key())
            for _ in range(self._workers):
                group.create_task(self._work())
            try:
                await asyncio.Future()
            finally:
                if self._stop.is_set():
                    await self._drain()
        raise AssertionError("this task ends only by cancellation")

    def _lifetimes(self) -> Lifetimes:
        return Lifetimes.of(active_cdi(self._observed.installations()))

    async def _keep_key(self) -> None:
        """Read the signing key of tokens regularly, so that a recreated one is noticed."""
        while True:
            try:
                self._clones.key = await ensure_signing_key(self._client, self._install_namespace, self._key_secret)
            except CdiError as error:
                log.warning("cannot read the token signing key, retrying", extra=fields(reason=error))
            await asyncio.sleep(KEY_EVERY if self._clones.key is not None else KEY_SOON)

    async def _drain(self) -> None:
        """Wait until the running reconciles have finished; no further key is taken from the queue."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while self.queue.in_work:
                    self._ended.clear()
                    await self._ended.wait()

    # --- event handlers ---------------------------------------------------------------------------------------------

    def _changed(self, resource: Resource, change: Change) -> None:
        self._observed.changed(resource, change)
        if resource == PODS:
            self._follow(change)
        if self._synced:  # before that, `run` adds all keys itself once the caches are in sync
            for key in affected(resource, change, self.watches):
                self.queue.add(key)

    def _freed(self, namespace: str, claim: str) -> None:
        if self._synced:
            self.queue.add(volume(namespace, claim))
            for key in (*self.watches.waiting.on(namespace, claim), *concerned(self.watches, (namespace, claim))):
                self.queue.add(key)

    def _follow(self, change: Change) -> None:
        """Poll the progress of a running worker, and count the outcome of one that has ended."""
        pod = change.object
        uid = pod["metadata"]["uid"]
        if change.type == "DELETED":
            self._progresses.forget(uid)
        elif _runs(pod):
            self._progresses.follow(_target(pod))
        else:
            self._progresses.leave(uid)
            worker = observe_pod(pod)
            before = observe_pod(change.old) if change.old is not None else None
            if worker is not None and worker.outcome is not None and before is not None and before.running:
                self._metrics.ended(SUCCEEDED if worker.outcome.failure is None else worker.outcome.failure.code)

    def _told(self, target: Target) -> None:
        pod = self.watches.get(PODS, target.namespace, target.name)
        if pod is not None:
            for key in owners_of(pod, self.watches):
                self.queue.add(key)

    async def _keep(self, target: Target, journal: str) -> None:
        """Store a journal in an annotation of the PVC that the pod fills, as the PVC outlives the pod."""
        pod = self.watches.get(PODS, target.namespace, target.name)
        owners = (pod or {}).get("metadata", {}).get("ownerReferences") or ()
        for owner in owners:
            if owner.get("kind") == CLAIMS.kind and owner.get("controller"):
                metadata = {"uid": owner["uid"], "annotations": {ANN_STORED_JOURNAL: journal}}
                with contextlib.suppress(NotFound):
                    made = await self._client.patch(CLAIMS, target.namespace, owner["name"], {"metadata": metadata})
                    self.watches.note(CLAIMS, made)

    # --- reconciles -------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                if not self._stop.is_set():
                    await self._step(key)
            finally:
                self.queue.done(key)
                self._ended.set()

    async def _step(self, key: Key) -> None:
        """Reconcile one key; its errors do not affect other keys."""
        try:
            with self._metrics.reconciling(key.kind):
                async with asyncio.timeout(LONGEST):
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
            await self._complain(key, error)
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

    async def _complain(self, key: Key, error: InvalidManifest) -> None:
        try:
            await self._reconcilers.complain(key, error)
        except CdiError as trouble:
            # The API server may reject every write of an invalid object; then only the event reports the error.
            log.warning("cannot write the status of an invalid object", extra=fields(key=key, reason=trouble))


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
