"""Local cache of one resource, kept in sync with the API server by a list and subsequent watches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Never

from cdi.api.errors import CdiError, ClusterUnavailable, HistoryExpired, NotFound
from cdi.api.kinds import Object, Resource
from cdi.kube import responses
from cdi.kube.client import Client

LOG = logging.getLogger(__name__)
_MIN_BACKOFF, _MAX_BACKOFF = 0.25, 30.0
_LASTED = 1.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """Change of one object; both states belong to the cache and must not be modified."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    old: Object | None
    """Previous state; None if the object was added."""
    new: Object | None
    """New state; None if the object was deleted."""

    @property
    def object(self) -> Object:
        """The newest known state."""
        found = self.new if self.new is not None else self.old
        assert found is not None
        return found


class Cache:
    """Store of a `Reflector`; its objects must not be modified."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        """Set once the initial list is complete."""
        self._objects: dict[tuple[str, str], Object] = {}

    def get(self, namespace: str, name: str) -> Object | None:
        """Return the object, or None; `namespace` is empty for cluster-scoped resources."""
        return self._objects.get((namespace, name))

    def values(self) -> list[Object]:
        """Return all objects, unordered."""
        return list(self._objects.values())

    def __iter__(self) -> Iterator[Object]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self._objects)


class Reflector:
    """List and watch loop that never ends.

    After a list, objects that were deleted while no watch was open are reported as ``DELETED``; a name that was reused
    for a new object is reported as ``DELETED`` and ``ADDED``. Failures are retried with growing delays; `failure` holds
    the current one.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        strip: Callable[[Object], Object] | None = None,
        on_change: Callable[[WatchEvent], None],
        optional: bool = False,
        metadata_only: bool = False,
        read_timeout: float = 120.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Configure the loop.

        `strip` is called with each object before it is stored and may modify it; managedFields are removed already.
        With `metadata_only` each object consists of its metadata, apiVersion and kind. `optional` treats a resource
        that the API server does not serve as empty. A watch without data for `silence` seconds counts as lost; the
        server ends a watch sooner than that (`Client.watch`).
        """
        self.cache = Cache()
        self.failure: CdiError | None = None
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._labels, self._fields = labels, fields
        self._strip = strip
        self._on_change = on_change
        self._optional = optional
        self._metadata_only = metadata_only
        self._silence = read_timeout
        self._sleep = sleep
        self._noted: set[tuple[str, str]] = set()
        """Keys whose recorded write the watch has not delivered yet."""
        self._not_found: set[str] = set()
        """UIDs of objects that a request did not find and whose deletion the watch has not delivered yet."""
        self._version: str | None = None
        """Resource version to watch from; None if a list is needed first."""
        self._pause = _MIN_BACKOFF

    async def run(self) -> Never:
        """List and watch until cancelled."""
        while True:
            try:
                if self._version is None:
                    await self._list()
                await self._watch()
            except HistoryExpired:
                LOG.info("relisting %s: the watched version has expired", self._resource)
                self._version = None
                await self._wait()
            except CdiError as error:
                await self._wait_out(error)

    async def _wait_out(self, error: CdiError) -> None:
        if self._optional and isinstance(error, NotFound):
            self._replace([], math.inf)
            self.failure = None
            self._pause = _MAX_BACKOFF
        else:
            if self.failure is None or self.failure.code != error.code:
                LOG.warning("cannot list or watch %s, retrying: %s", self._resource, error.message)
            self.failure = error
        await self._wait(error.retry_after if isinstance(error, ClusterUnavailable) else None)

    async def _wait(self, least: float | None = None) -> None:
        pause, self._pause = self._pause, min(self._pause * 2, _MAX_BACKOFF)
        await self._sleep(max(pause * random.uniform(0.75, 1.25), least or 0.0))  # noqa: S311  spreads load

    def _mark_recovered(self) -> None:
        self._pause = _MIN_BACKOFF
        if self.failure is not None:
            LOG.info("list and watch of %s recovered", self._resource)
            self.failure = None

    async def _list(self) -> None:
        listing = await self._client.list(
            self._resource,
            self._namespace,
            labels=self._labels,
            fields=self._fields,
            strip=self._stripped,
            metadata_only=self._metadata_only,
        )
        self._replace(listing.items, _number(listing.version))
        self._version = listing.version
        self._mark_recovered()

    async def _watch(self) -> None:
        assert self._version is not None
        events = self._client.watch(
            self._resource,
            self._namespace,
            version=self._version,
            labels=self._labels,
            fields=self._fields,
            read_timeout=self._silence,
            metadata_only=self._metadata_only,
        )
        heard = False
        clock = asyncio.get_running_loop().time
        began = clock()
        async with contextlib.aclosing(events):
            async for event in events:
                self._event(event)
                if not heard:
                    heard = True
                    self._mark_recovered()
        if heard:
            return
        if clock() - began >= _LASTED:
            self._mark_recovered()  # no changes, and the server ended it on schedule
        else:
            await self._wait()  # back off from a server that ends every watch at once

    def _event(self, event: Object) -> None:
        body: Object = event["object"]
        match event.get("type"):
            case "ADDED" | "MODIFIED":
                self._put(self._stripped(body))
            case "DELETED":
                self._not_found.discard(body["metadata"].get("uid"))
                self._remove(_key(body), body["metadata"].get("uid"))
            case "BOOKMARK":
                pass
            case "ERROR":
                self._version = None
                status = body.get("code")
                raise responses.error_from_status(
                    status if isinstance(status, int) and status >= 400 else 500, body, {}, f"watch of {self._resource}"
                )
            case _:
                return
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version:
            self._version = str(version)

    def record_write(self, body: Object) -> None:
        """Record the result of our own write, so that the next reconcile does not act on an older state.

        The watch delivers the same state later and is then ignored. `body` belongs to the cache from then on.
        """
        if _version(body) <= _number(self._version):
            return  # already delivered by the watch, perhaps with its deletion, which must not be undone
        known = self.cache.get(*_key(body))
        if known is None or _version(body) > _version(known):
            key = _key(body)
            self._put(self._stripped(body))
            self._noted.add(key)

    def record_deletion(self, namespace: str, name: str, uid: str) -> None:
        """Record that a request did not find the object.

        What the watch delivers of it later is ignored up to its deletion.
        """
        known = self.cache.get(namespace, name)
        if known is not None and known["metadata"].get("uid") == uid:
            self._not_found.add(uid)
            self._remove((namespace, name))

    def _stripped(self, body: Object) -> Object:
        body["metadata"].pop("managedFields", None)
        return body if self._strip is None else self._strip(body)

    # --- the cache ----------------------------------------------------------------------------------------------

    def _replace(self, items: list[Object], version: float) -> None:
        self._not_found &= {item["metadata"].get("uid") for item in items}
        present = {_key(item) for item in items}
        for key, known in list(self.cache._objects.items()):  # noqa: SLF001  only the reflector writes the cache
            if key not in present and not (key in self._noted and _version(known) > version):
                self._remove(key)
        for item in items:
            self._put(item)
        self.cache.synced.set()

    def _put(self, body: Object) -> None:
        if body["metadata"].get("uid") in self._not_found:
            return
        key = _key(body)
        old = self.cache._objects.get(key)  # noqa: SLF001  as above
        if old is not None:
            if key in self._noted and _version(body) < _version(old):
                return  # older than our write, perhaps a predecessor of the same name
            self._noted.discard(key)
            before, metadata = old["metadata"], body["metadata"]
            if before.get("uid") == metadata.get("uid"):
                if before.get("resourceVersion") == metadata.get("resourceVersion"):
                    return
                self.cache._objects[key] = body  # noqa: SLF001  as above
                self._dispatch(WatchEvent(type="MODIFIED", old=old, new=body))
                return
            self._remove(key)
        self.cache._objects[key] = body  # noqa: SLF001  as above
        self._dispatch(WatchEvent(type="ADDED", old=None, new=body))

    def _remove(self, key: tuple[str, str], uid: str | None = None) -> None:
        """Remove the object; with `uid` only if it matches, so that a recorded successor stays."""
        old = self.cache._objects.get(key)  # noqa: SLF001  as above
        if old is not None and uid in (None, old["metadata"].get("uid")):
            del self.cache._objects[key]  # noqa: SLF001  as above
            self._noted.discard(key)
            self._dispatch(WatchEvent(type="DELETED", old=old, new=None))

    def _dispatch(self, change: WatchEvent) -> None:
        try:
            self._on_change(change)
        except Exception:
            # An object that makes the listener fail must not stop the delivery of all others.
            LOG.exception("event handler for %s failed", self._resource)


def _version(body: Object) -> float:
    return _number(body["metadata"].get("resourceVersion"))


def _number(version: str | None) -> float:
    """Return a resource version as a comparable number (KEP-5504); an invalid one is older than any."""
    try:
        return int(version or "")
    except ValueError:
        return -math.inf


def _key(body: Object) -> tuple[str, str]:
    metadata = body["metadata"]
    return metadata.get("namespace") or "", metadata["name"]
