"""Secrets and ConfigMaps that reconcilers refer to: their keys and versions. Their values are never kept.

They are polled, not watched: permission to watch Secrets is permission to read all of them. An object that a DataVolume
names is read by its name, and read again as long as a key uses it, at growing intervals. A missing object is usually
about to be created, so it is read again after only one second. Intervals grow by half, so a change is noticed after at
most half of the time that passed before it, or a minute. Keys that use the same object share each read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.api.kinds import CONFIG_MAPS, SECRETS
from cdi.controller.request import Request
from cdi.kube.client import Client
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.types import Input

MISSING, POLL_MIN = 1.0, 5.0
"""Initial polling interval in seconds of an object that is missing and of one that exists.

Each further interval is 1.5 times as long.
"""
POLL_MAX = 60.0
"""Longest polling interval in seconds."""


@dataclass(slots=True)
class _CacheEntry:
    found: Input | None
    when: float
    pause: float

    @property
    def due(self) -> float:
        return self.when + self.pause


def _first(found: Input | None) -> float:
    return MISSING if found is None else POLL_MIN


def _nobody(_: Request) -> None:
    pass


class ReferencedObjects:
    """Polled Secrets and ConfigMaps, with the keys that use them."""

    def __init__(
        self,
        client: Client,
        *,
        on_change: Callable[[Request], None] = _nobody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with no known objects.

        Args:
            client: Client of the API server.
            on_change: Called with each other key that uses an object when a read for one key finds it changed.
            clock: Called for monotonic time in seconds.

        """
        self._client = client
        self._on_change = on_change
        self._clock = clock
        self._looks: dict[ObjectRef, _CacheEntry] = {}
        self._users: dict[ObjectRef, set[Request]] = {}
        self._uses: dict[Request, set[ObjectRef]] = {}
        self._asked: set[ObjectRef] | None = None

    @contextlib.contextmanager
    def track(self, key: Request) -> Iterator[None]:
        """Record every `get` within the context as used by `key`, and nothing else any more.

        The body must not await, as the record belongs to the instance.
        """
        self._asked = set()
        try:
            yield
        finally:
            asked, self._asked = self._asked, None
            self._use(key, asked)

    def forget(self, key: Request) -> None:
        """Stop polling for a key."""
        self._use(key, set())

    def get(self, ref: ObjectRef) -> Input | None:
        """Return an object's keys and version; None if it does not exist or has not been read yet (`read`)."""
        if self._asked is not None:
            self._asked.add(ref)
        look = self._looks.get(ref)
        return look.found if look is not None else None

    async def read(self, key: Request) -> bool:
        """Read the objects that `key` uses and that are due; return whether any of them is new or has changed."""
        changed = False
        for ref in tuple(self._uses.get(key, ())):
            before = self._looks.get(ref)
            if before is not None and self._clock() < before.due:
                continue
            found = await self._read(ref)
            now = self._clock()
            if before is None or before.found != found:
                self._looks[ref] = _CacheEntry(found=found, when=now, pause=_first(found))
                changed = True
                for other in self._users.get(ref, set()) - {key}:
                    self._on_change(other)
            else:
                self._looks[ref] = _CacheEntry(found=found, when=now, pause=min(before.pause * 1.5, POLL_MAX))
        return changed

    def pause(self, key: Request) -> float | None:
        """Return the seconds until the next read for `key` is due; None if it uses no object."""
        now = self._clock()
        dues = [look.due if (look := self._looks.get(ref)) is not None else now for ref in self._uses.get(key, ())]
        return max(0.0, min(dues) - now) if dues else None

    def _use(self, key: Request, refs: set[ObjectRef]) -> None:
        before = self._uses.pop(key, set())
        for ref in before - refs:
            self._users[ref].discard(key)
            if not self._users[ref]:
                del self._users[ref]
                self._looks.pop(ref, None)
        for ref in refs - before:
            self._users.setdefault(ref, set()).add(key)
            if (look := self._looks.get(ref)) is not None:
                # Polling for other keys may have reached a long interval; start with a short one for the new key.
                look.pause = _first(look.found)
        if refs:
            self._uses[key] = refs

    async def _read(self, ref: ObjectRef) -> Input | None:
        resource = SECRETS if ref.kind == "Secret" else CONFIG_MAPS
        try:
            body = await self._client.get(resource, ref.namespace, ref.name)
        except NotFound:
            return None
        except ClusterForbidden as error:
            return Input(version="", keys=frozenset(), refused=error.message)
        metadata = body["metadata"]
        return Input(
            version=f"{metadata['uid']}/{metadata['resourceVersion']}",
            keys=frozenset({*(body.get("data") or {}), *(body.get("binaryData") or {})}),
        )
