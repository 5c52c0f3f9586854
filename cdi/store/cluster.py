"""Object store on the API server of a cluster.

The rules of `cdi.store.base` apply to all kinds, also where Kubernetes' own kinds differ: the status is written
separately even if the kind has no status subresource, and an object may be replaced without a resourceVersion even if
the API server requires one.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Self

from cdi.api.errors import Conflict, KindNotServed, NotFound
from cdi.api.kinds import CLAIMS, KINDS, kind_named
from cdi.kube.client import connect
from cdi.kube.sync import SyncClient
from cdi.store.base import SERVER_OWNED, Key, Object, has_status, plain
from cdi.store.cluster_watch import ClusterWatch, ListWatch

_TRIES = 50
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
        sources = [ListWatch(resource=kind_named(plural), namespace=namespace) for plural in plurals]
        watch = ClusterWatch(self._blocking, sources)
        try:
            watch.sync(math.inf)
        except BaseException:
            watch.close()
            raise
        return watch

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


def _strip(body: Object) -> Object:
    body["metadata"].pop("managedFields", None)
    return body
