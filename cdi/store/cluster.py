"""Object store on the API server of a cluster.

The rules of `cdi.store.base` apply to all kinds, also where Kubernetes' own kinds differ: the status is written
separately even if the kind has no status subresource, and an object may be replaced without a resourceVersion even if
the API server requires one.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import Callable, Collection
from typing import Self

from cdi.api.errors import Conflict, KindNotServed, NotFound, Retry
from cdi.api.kinds import CLAIMS, KINDS, Resource, kind_named
from cdi.kube.client import connect
from cdi.kube.reflector import Reflector, WatchEvent
from cdi.kube.sync import SyncClient
from cdi.store.base import SERVER_OWNED, Change, Key, Object, has_status, plain

_TRIES = 50
_POLL_INTERVAL = 1.0
"""Seconds between checks for a failed watch."""
_WITH_STATUS_SUBRESOURCE = {kind.plural for kind in KINDS if kind.status_subresource} | {CLAIMS.plural}


class ClusterStore:
    """Implementation of `cdi.store.base.Store` on an API server.

    Every call may additionally raise a `ClusterError`. Returned objects have no ``managedFields``.
    """

    def __init__(self, blocking: SyncClient) -> None:
        """Create a store on `blocking`, which the caller closes."""
        self._blocking = blocking
        self._client = blocking.client

    @classmethod
    def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """Connect as `cdi.kube.client.connect` does; the caller closes the store."""
        return cls(SyncClient(connect(kubeconfig, context)))

    @property
    def namespace(self) -> str:
        """Default namespace, from the kubeconfig's context or the pod."""
        return self._client.namespace

    def get(self, key: Key) -> Object:
        key = Key.of(key.plural, key.namespace, key.name)
        try:
            return _strip(self._blocking.run(self._client.get(key.kind, key.namespace or None, key.name)))
        except KindNotServed:
            raise
        except NotFound as error:
            raise NotFound(f"there is no {key}") from error

    def list(self, plural: str, namespace: str | None = None) -> list[Object]:
        kind = kind_named(plural)
        space = namespace if kind.namespaced else None
        listing = self._blocking.run(self._client.list(kind, space, strip=_strip))
        return sorted(listing.items, key=Key.of_object)

    def create(self, body: Object) -> Object:
        key, body = Key.of_object(body), plain(body)
        if has_status(key):
            body.pop("status", None)
        for field in SERVER_OWNED:
            body["metadata"].pop(field, None)
        if key.namespace:
            body["metadata"]["namespace"] = key.namespace
        body = {"apiVersion": key.kind.api_version, **body, "kind": key.kind.kind}
        return _strip(self._blocking.run(self._client.create(key.kind, body)))

    def update(self, body: Object) -> Object:
        return self._replace(body, status=False)

    def update_status(self, body: Object) -> Object:
        return self._replace(body, status=True)

    def delete(self, key: Key, *, uid: str | None = None) -> Object | None:
        key = Key.of(key.plural, key.namespace, key.name)
        work = self._client.delete(key.kind, key.namespace or None, key.name, uid=uid)
        marked = self._blocking.run(work)
        return None if marked is None else _strip(marked)

    def watch(self, plurals: Collection[str], namespace: str | None = None) -> ClusterWatch:
        """Watch these kinds, in `namespace` only if it is given, for callers without access to other namespaces."""
        return ClusterWatch(self._blocking, [kind_named(plural) for plural in plurals], namespace)

    def close(self) -> None:
        self._blocking.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _replace(self, body: Object, *, status: bool) -> Object:
        """Write either the status of `body` or everything except the status."""
        key, body = Key.of_object(body), plain(body)
        claimed = body["metadata"]
        subresource = "status" if status and key.plural in _WITH_STATUS_SUBRESOURCE else ""
        for _ in range(_TRIES):
            old = self.get(key)
            base, wanted = (old, body) if status else (body, old)
            new = {"apiVersion": old["apiVersion"], **base, "kind": old["kind"]}
            if status or has_status(key):
                new.pop("status", None)
                if wanted.get("status") is not None:
                    new["status"] = wanted["status"]
            current = {name: claimed.get(name) or old["metadata"][name] for name in ("uid", "resourceVersion")}
            new["metadata"] = {**base["metadata"], **current}
            if key.namespace:
                new["metadata"]["namespace"] = key.namespace
            new["metadata"].pop("managedFields", None)  # the API server keeps its own if there are none
            try:
                work = self._client.update(key.kind, new, subresource=subresource)
                return _strip(self._blocking.run(work))
            except Conflict:
                if claimed.get("resourceVersion") or current["uid"] != old["metadata"]["uid"]:
                    raise
        raise Conflict(f"{key} is changed by other clients faster than it can be written")


class ClusterWatch:
    """Implementation of `cdi.store.base.Watch` with reflectors that run in the background."""

    def __init__(self, blocking: SyncClient, resources: Collection[Resource], namespace: str | None) -> None:
        """Start the reflectors and wait until all existing objects are known; raise a permanent failure."""
        self._pending = ChangeBuffer()
        self._reflectors = [
            Reflector(blocking.client, each, namespace=namespace, on_change=self._pending.listener(each))
            for each in resources
        ]
        self._runs = [blocking.start(each.run()) for each in self._reflectors]
        try:
            while not blocking.run(self._synced()):
                self._check()
        except BaseException:
            self.close()
            raise

    def poll(self, timeout: float) -> list[Change]:
        """Return the changes since the last call, waiting up to `timeout` seconds for the first one.

        Raises:
            ClusterError: A watch failed permanently, such as with `ClusterForbidden`. An unreachable API server is not
                an error; its watches are retried.
        """
        deadline = time.monotonic() + timeout
        while True:
            changes = self._pending.take()
            if changes:
                return changes
            self._check()
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._pending.wait(min(_POLL_INTERVAL, left))

    def close(self) -> None:
        for each in self._runs:
            each.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _synced(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_INTERVAL):
                for each in self._reflectors:
                    await each.cache.synced.wait()
                return True
        return False

    def _check(self) -> None:
        for reflector in self._reflectors:
            if reflector.failure is not None and reflector.failure.retry is not Retry.BACKOFF:
                raise reflector.failure


class ChangeBuffer:
    """Buffer of unread changes, coalesced to at most one deletion and one current state per object."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._changes: dict[Key, list[Change]] = {}

    def listener(self, resource: Resource) -> Callable[[WatchEvent], None]:
        """Return the callback for the reflector of `resource`."""

        def listen(event: WatchEvent) -> None:
            metadata = event.object["metadata"]
            key = Key(resource.plural, metadata.get("namespace") or "", metadata["name"])
            with self._changed:
                waiting = self._changes.pop(key, [])
                waiting = coalesce(waiting, Change(type=event.type, key=key, body=event.object))
                if waiting:
                    self._changes[key] = waiting
                self._changed.notify_all()

        return listen

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until there is a change to take."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._changes), timeout)

    def take(self) -> list[Change]:
        with self._changed:
            changes, self._changes = self._changes, {}
        # Copied because the bodies belong to the reflector's cache.
        return [
            Change(type=each.type, key=each.key, body=copy.deepcopy(each.body))
            for waiting in changes.values()
            for each in waiting
        ]


def coalesce(waiting: list[Change], change: Change) -> list[Change]:
    """Return the changes of one object that remain when `change` follows the unread ones in `waiting`."""
    if not waiting:
        return [change]
    *before, last = waiting
    match last.type, change.type:
        case "ADDED", "DELETED":  # its creation was never reported
            return before
        case "ADDED", "MODIFIED":
            return [*before, Change(type="ADDED", key=change.key, body=change.body)]
        case "MODIFIED", _:
            return [*before, change]
        case _:
            return [*waiting, change]


def _strip(body: Object) -> Object:
    body["metadata"].pop("managedFields", None)
    return body
