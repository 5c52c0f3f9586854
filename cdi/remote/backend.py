"""Backend for a cluster: the interface of `cdi.client.backend`, implemented with the Kubernetes API.

It keeps no state and runs nothing: the cluster's controller reconciles the objects. Waiting is based on watches.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import LIMITS
from cdi.api.errors import ClusterForbidden, Conflict, KindNotServed, NotFound, WaitTimeout
from cdi.api.job import Outcome
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, EVENTS, PODS, VOLUME_SNAPSHOTS, resource_named
from cdi.client.backend import Advance, Applied, Backend, Fraction, Objects, Section
from cdi.client.document import Manifest
from cdi.kube.client import Client
from cdi.kube.credentials import find
from cdi.kube.sync import SyncClient
from cdi.kube.transport import Timeouts
from cdi.remote import worker_lookup as fillings
from cdi.remote.worker_lookup import Filling, find_filling
from cdi.store.base import Change, Key, Object
from cdi.store.cluster import ClusterStore
from cdi.store.cluster_watch import ClusterWatch, ListWatch

START_TIMEOUT = 6.0
"""Seconds of retries if the server is unavailable; short, since a user is waiting."""
_CONNECT = 5.0
"""Seconds for a connection."""
_DELETED = 120.0


class Cluster(Backend):
    """The backend of one cluster, with the user of one kubeconfig context or a pod's service account."""

    def __init__(self, calls: SyncClient, *, patience: float) -> None:
        self._calls = calls
        self._patience = patience
        self.store = ClusterStore(calls)

    @classmethod
    def connect(cls, kubeconfig: Path | None, context: str | None, *, patience: float | None = None) -> Self:
        """Connect with the given kubeconfig, the default one (KUBECONFIG) or the pod's service account.

        A server that is unavailable is retried for `patience` seconds, by default `START_TIMEOUT`. Raises
        `ClusterError`.
        """
        patience = START_TIMEOUT if patience is None else patience
        credentials = find(kubeconfig, context)
        # Watches log errors for services; commands report the error that ends them.
        logging.getLogger("cdi.kube").addHandler(logging.NullHandler())
        timing = Timeouts(connect=_CONNECT, patience=patience)
        return cls(SyncClient(Client(credentials, timing=timing, agent="cdi-cli")), patience=patience)

    @property
    def namespace(self) -> str:
        """The namespace of the context or the pod."""
        return self._calls.client.namespace

    @property
    def calls(self) -> SyncClient:
        """The client, for requests that these methods do not cover."""
        return self._calls

    def close(self) -> None:
        self._calls.close()

    # --- objects --------------------------------------------------------------------------------------------------

    def apply(
        self,
        manifests: Iterable[Manifest],
        *,
        namespace: str | None = None,
        dry_run: bool = False,
        strict: bool = False,
    ) -> list[Applied]:
        """See `Backend.apply`; uses server-side apply."""
        from cdi.remote.apply import apply_to_cluster

        space = namespace or self.namespace
        return apply_to_cluster(self._calls, self.store, manifests, namespace=space, dry_run=dry_run, strict=strict)

    def delete(
        self, kind: str, namespace: str | None, name: str, *, cascade: bool = True, timeout: float = _DELETED
    ) -> None:
        """See `Backend.delete`; the cluster's garbage collector deletes the dependents."""
        key = Key.of(kind, namespace, name)
        body = self.store.get(key)
        uid = body["metadata"]["uid"]
        waited = {key: uid}
        claim = self.owned_claim(key, uid) if cascade else None
        if claim is not None:
            waited[Key.of_object(claim)] = claim["metadata"]["uid"]
        with self.courses(waited) as courses:
            work = self._calls.client.delete(
                resource_named(key.plural),
                key.namespace or None,
                key.name,
                uid=uid,
                propagation=None if cascade else "Orphan",
            )
            self._calls.run(work)
            deadline = time.monotonic() + timeout
            while any(_lives(courses, one, its) for one, its in waited.items()):
                if time.monotonic() >= deadline:
                    raise WaitTimeout(f"{key} is still being deleted", remedy="cdi get pvc shows the remaining objects")
                courses.pause(deadline - time.monotonic())

    def annotate(
        self,
        kind: str,
        namespace: str | None,
        name: str,
        annotations: Mapping[str, str | None],
        *,
        uid: str,
        version: str | None = None,
    ) -> Object:
        """See `Backend.annotate`."""
        key = Key.of(kind, namespace, name)
        # The API server rejects a patch with another UID or resourceVersion than the object's as a conflict.
        metadata: Object = {"uid": uid, "annotations": dict(annotations)}
        if version is not None:
            metadata["resourceVersion"] = version
        patch = {"metadata": metadata}
        try:
            return self._calls.run(
                self._calls.client.patch(resource_named(key.plural), key.namespace or None, key.name, patch)
            )
        except Conflict as error:
            if version is not None:
                raise
            raise NotFound(f"{key} was deleted or replaced") from error

    def version_object(self, namespace: str, name: str) -> Object | None:
        """See `Backend.version_object`."""
        claim = self._calls.find(CLAIMS, namespace, name)
        if claim is not None:
            return claim
        try:
            return self._calls.find(VOLUME_SNAPSHOTS, namespace, name)
        except KindNotServed:
            return None  # snapshots are optional in a cluster

    def events(self, namespace: str | None, name: str, kind: str = "dv") -> Objects:
        """Return the events of an object, and of a DataVolume's PVC, oldest first; raise `NotFound`."""
        body = self.get(kind, namespace, name)
        about = [body]
        if body["kind"] == "DataVolume":
            claim = self._calls.find(CLAIMS, body["metadata"]["namespace"], name)
            about += [claim] if claim is not None else []
        return _in_order(event for one in about for event in self.events_of(one))

    def events_of(self, about: Object) -> Objects:
        """Return the events of this object alone, oldest first."""
        metadata = about["metadata"]
        space = metadata.get("namespace") or "default"
        fields = f"involvedObject.uid={metadata['uid']}"
        return _in_order(self._calls.run(self._calls.client.list(EVENTS, space, fields=fields)).items)

    def changes(self, plurals: Collection[str], namespace: str | None) -> ClusterWatch:
        """See `Backend.changes`."""
        return ClusterWatch(
            self._calls, [ListWatch(resource=one, namespace=namespace) for one in map(resource_named, plurals)]
        )

    # --- progress of a DataVolume -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def courses(self, keys: Collection[Key]) -> Iterator[_Courses]:
        """Watch these objects, with one watch for each kind and namespace."""
        sources = []
        for plural, space in sorted({(key.plural, key.namespace) for key in keys}):
            names = sorted(key.name for key in keys if (key.plural, key.namespace) == (plural, space))
            one = names[0] if len(names) == 1 else None
            sources.append(ListWatch(resource=resource_named(plural), namespace=space or None, name=one))
        with ClusterWatch(self._calls, sources) as watch:
            watch.sync(self._patience)
            yield _Courses(watch)

    def progress_of(self, body: Object) -> Fraction | None:
        """Return the progress in ``status.progress``."""
        return share_of(body)

    def outcome(self, namespace: str | None, name: str) -> Outcome | None:
        """Return the outcome in the worker's pod, as long as the pod exists; raise `NotFound`."""
        key = Key.of("dv", namespace, name)
        self.store.get(key)
        try:
            return fillings.outcome_of(self.filling(key.namespace, key.name))
        except ClusterForbidden:
            return None  # optional information

    def filling(self, namespace: str, name: str) -> Filling:
        """Return the PVC of this name, with its prime PVC and worker pod."""
        return find_filling(self._calls.find, namespace, name)

    def about(self, body: Object) -> Iterator[Section]:
        """Yield sections about the PVC, and about the worker pod with the reason if it is blocked."""
        from cdi.remote.diagnose import pod_facts

        metadata = body["metadata"]
        found = self.filling(metadata["namespace"], metadata["name"])
        if body["kind"] == "DataVolume":
            yield "Claim", list(fillings.claim_facts(found))
        if found.pod is not None:
            yield "Worker", list(pod_facts(found.pod))

    def log(self, namespace: str | None, name: str, *, follow: bool = False) -> Iterator[str]:
        """Yield lines of the worker pod's log; with `follow`, also of later pods, until the DataVolume is done.

        The cluster keeps the log of a pod only as long as the pod. Raises `NotFound`.
        """
        from cdi.remote.logs import log

        key = Key.of("dv", namespace, name)
        return log(self._calls, key, follow=follow)

    def limit(
        self, namespace: str | None, name: str, *, bandwidth: int | None = None, connections: int | None = None
    ) -> bool:
        """See `Backend.limit`; annotates the DataVolume for later attempts, and the pod for this one."""
        from cdi.api.policy import limit_annotations, limits_of

        notes = limit_annotations(bandwidth=bandwidth, connections=connections)
        key = Key.of("dv", namespace, name)
        patch = {"metadata": {"annotations": notes}}
        body = self._calls.run(self._calls.client.patch(DATA_VOLUMES, key.namespace, key.name, patch))
        pod = self.filling(key.namespace, key.name).pod
        if pod is None or not fillings.running(pod):
            return False
        limits = limits_of(annotations_of(body))
        metadata = {"uid": pod["metadata"]["uid"], "annotations": LIMITS.write(limits.to_json())}
        try:
            self._calls.run(
                self._calls.client.patch(PODS, key.namespace, pod["metadata"]["name"], {"metadata": metadata})
            )
        except NotFound:
            return False
        return True


class _Courses:
    """The latest states that watches reported."""

    def __init__(self, watch: ClusterWatch) -> None:
        self._watch = watch
        self._bodies: dict[Key, Object] = {}
        self._take(watch.poll(0.0))

    def look(self, key: Key) -> tuple[Object, Advance | None]:
        body = self._bodies.get(key)
        if body is None:
            raise NotFound(f"there is no {key}")
        return body, share_of(body)

    def pause(self, seconds: float) -> None:
        self._take(self._watch.poll(seconds))

    def _take(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.type == "DELETED":
                self._bodies.pop(change.key, None)
            else:
                self._bodies[change.key] = change.body


def share_of(body: Object) -> Fraction | None:
    """Return a DataVolume's ``status.progress``, such as ``45.30%``, as a fraction; None if it is not a number."""
    text = str((body.get("status") or {}).get("progress") or "")
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        return None
    return Fraction(fraction=min(1.0, max(0.0, share)))


def _lives(courses: _Courses, key: Key, uid: str) -> bool:
    try:
        return bool(courses.look(key)[0]["metadata"]["uid"] == uid)
    except NotFound:
        return False


def _in_order(events: Iterable[Object]) -> Objects:
    return sorted(map(_dated, events), key=lambda event: str(event["lastTimestamp"] or ""))


def _dated(event: Object) -> Object:
    """Normalize the time and count of an event; newer recorders use other fields."""
    series = event.get("series") or {}
    when = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    count = event.get("count") or series.get("count") or 1
    return {**event, "lastTimestamp": when, "count": count}
