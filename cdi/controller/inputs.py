"""Secrets and ConfigMaps in use: which keys they have, and that they changed.  Their values are never kept.

They are followed by their metadata alone.  One that a reconciler asks for is read once, for the names of its keys, and
again when it has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cdi.api.errors import NotFound
from cdi.controller.keys import Key
from cdi.kube.client import Client
from cdi.kube.resources import CONFIG_MAPS, SECRETS, Resource
from cdi.reconcile.actions import InputRef
from cdi.reconcile.world import Input


class Inputs:
    """What is known of them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[InputRef, Input | None] = {}
        self._users: dict[InputRef, set[Key]] = {}
        self._uses: dict[Key, set[InputRef]] = {}
        self._changed: set[InputRef] = set()
        self._asked: set[InputRef] | None = None

    @contextlib.contextmanager
    def asking(self, key: Key) -> Iterator[None]:
        """What is asked for within is in use by `key`, and nothing else any more.  Nothing may be awaited within."""
        self._asked = set()
        try:
            yield
        finally:
            asked, self._asked = self._asked, None
            for ref in self._uses.get(key, set()) - asked:
                self._users[ref].discard(key)
                if not self._users[ref]:
                    del self._users[ref]
                    self._known.pop(ref, None)
                    self._changed.discard(ref)
            for ref in asked:
                self._users.setdefault(ref, set()).add(key)
            if asked:
                self._uses[key] = asked
            else:
                self._uses.pop(key, None)

    def get(self, ref: InputRef) -> Input | None:
        """None where there is none, or where it has to be read first (`read`)."""
        if self._asked is not None:
            self._asked.add(ref)
        return self._known.get(ref)

    async def read(self, key: Key) -> bool:
        """Read what `key` asked for and is not known; True where there was something to be read."""
        unknown = [ref for ref in self._uses.get(key, ()) if ref not in self._known]
        for ref in unknown:
            self._changed.discard(ref)
            found = await self._read(ref)
            if ref not in self._changed:  # else it changed while it was read, and whoever uses it comes again
                self._known[ref] = found
        return bool(unknown)

    def changed(self, resource: Resource, namespace: str, name: str) -> set[Key]:
        """It is to be read again; gives the keys that use it."""
        ref = InputRef(kind="Secret" if resource == SECRETS else "ConfigMap", namespace=namespace, name=name)
        self._known.pop(ref, None)
        if ref not in self._users:
            return set()
        self._changed.add(ref)
        return set(self._users[ref])

    async def _read(self, ref: InputRef) -> Input | None:
        resource = SECRETS if ref.kind == "Secret" else CONFIG_MAPS
        try:
            body = await self._client.get(resource, ref.namespace, ref.name)
        except NotFound:
            return None
        metadata = body["metadata"]
        return Input(
            version=f"{metadata['uid']}/{metadata['resourceVersion']}",
            keys=frozenset({*(body.get("data") or {}), *(body.get("binaryData") or {})}),
        )
