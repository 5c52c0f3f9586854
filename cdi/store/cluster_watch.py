"""Implementation of `cdi.store.base.Watch` on a cluster, by reflectors that run in the background."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from cdi.api.errors import Retry
from cdi.api.kinds import Resource
from cdi.kube.reflector import Reflector, WatchEvent
from cdi.kube.sync import SyncClient
from cdi.store.base import Change, Key

_POLL_INTERVAL = 0.5
"""Seconds between checks for watches that have failed permanently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListWatch:
    """Selection of the objects of one resource to list and watch."""

    resource: Resource
    namespace: str | None = None
    """All namespaces if None."""
    name: str | None = None
    labels: str = ""
    """A label selector."""


class ClusterWatch:
    """Watches of several kinds of objects; a server that is unavailable is retried.

    Every method raises errors that require intervention (`ClusterForbidden`, `KindNotServed` …).
    """

    def __init__(self, calls: SyncClient, sources: Iterable[ListWatch]) -> None:
        self._calls = calls
        self._pending = ChangeBuffer()
        self._reflectors = [
            Reflector(
                calls.client,
                source.resource,
                namespace=source.namespace,
                fields="" if source.name is None else f"metadata.name={source.name}",
                labels=source.labels,
                on_change=self._pending.listener(source.resource),
            )
            for source in sources
        ]
        self._runs = [calls.start(one.run()) for one in self._reflectors]

    def sync(self, patience: float) -> None:
        """Wait until all existing objects have been reported.

        Raises the error that prevents this for longer than `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while not self._calls.run(self._all_synced()):
            self._check()
            if time.monotonic() >= deadline:
                for one in self._reflectors:
                    if one.failure is not None:
                        raise one.failure

    async def _all_synced(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_INTERVAL):
                for one in self._reflectors:
                    await one.cache.synced.wait()
        return all(one.cache.synced.is_set() for one in self._reflectors)

    def poll(self, timeout: float) -> list[Change]:
        """Return changes since the last call, waiting up to `timeout` seconds for the first of them."""
        deadline = time.monotonic() + timeout
        while not (changes := self._pending.take()):
            self._check()
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._pending.wait(min(_POLL_INTERVAL, left))
        return changes

    def _check(self) -> None:
        for one in self._reflectors:
            if one.failure is not None and one.failure.retry is not Retry.BACKOFF:
                raise one.failure

    def close(self) -> None:
        for run in self._runs:
            run.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
