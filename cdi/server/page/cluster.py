"""Volumes of a cluster, accessed with the user's own token: the API server authorizes every request."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from cdi.api.errors import ClusterForbidden, ClusterUnauthorized, NotFound
from cdi.api.kinds import (
    DATA_VOLUMES,
    NAMESPACES,
    SELF_SUBJECT_ACCESS_REVIEWS,
    STORAGE_CLASSES,
    UPLOAD_TOKEN_REQUESTS,
)
from cdi.kube.client import Client
from cdi.kube.credentials import Credentials, FixedCredentials
from cdi.kube.sync import SyncClient
from cdi.kube.transport import Timeouts
from cdi.remote.backend import share_of
from cdi.server.page.backend import Session
from cdi.server.page.view_model import row
from cdi.store.base import Object

T = TypeVar("T")
_MAX_SESSIONS = 64
"""Number of users whose clients are kept, and likewise of tokens that were not verified.

The proxy serves fewer unverified requests than this at a time, so no client in use is ever evicted.
"""
_SESSION_TTL = 300.0
"""Seconds for which a token that the API server has accepted counts as verified."""
_TIMING = Timeouts(connect=5.0, answer=30.0, patience=3.0)
_MAX_NAMES = 1000


class ClusterBackendProvider:
    """Clients of recent users; a client is never used with another user's token."""

    hint = "Enter a token of the cluster, for instance from kubectl create token NAME. The page has its permissions."

    def __init__(self, own: SyncClient, credentials: Credentials) -> None:
        """Connect to the API server of `credentials` and trust its authorities; nothing else of them is used."""
        self._own = own
        self._credentials = credentials
        self._clients: dict[bytes, Client] = {}
        self._accepted: dict[bytes, float] = {}
        """When the API server last accepted a token, by `time.monotonic`; in ascending order."""
        self._lock = threading.Lock()

    def recognises(self, token: str) -> bool:
        """Return whether the API server has accepted the token recently.

        This only prioritizes requests under load; the API server authorizes each of them.
        """
        accepted = self._accepted.get(_digest(token))
        return accepted is not None and time.monotonic() - accepted < _SESSION_TTL

    def of(self, token: str) -> ClusterVolumeBackend:
        return ClusterVolumeBackend(self._own, self._own.run(self._client(token)), lambda: self._accept(token))

    def _accept(self, token: str) -> None:
        with self._lock:
            known = _digest(token)
            self._accepted.pop(known, None)
            self._accepted[known] = time.monotonic()
            while len(self._accepted) > _MAX_SESSIONS:
                del self._accepted[next(iter(self._accepted))]

    def close(self) -> None:
        """Close all connections; no request may follow."""
        self._own.run(self._close_client())

    async def _close_client(self) -> None:
        while self._clients:
            _, client = self._clients.popitem()
            await client.__aexit__(None, None, None)

    async def _client(self, token: str) -> Client:
        """Return the client of a token; this runs only in the event loop, so it needs no lock."""
        known = _digest(token)
        client = self._clients.pop(known, None)
        if client is None:
            access = replace(await self._credentials.access(), authorization=f"Bearer {token}")
            if access.context is not None:
                access = replace(access, context=_without_certificate(access.context))
            client = Client(FixedCredentials(access), timing=_TIMING, agent="cdi-page")
            await client.__aenter__()
        self._clients[known] = client
        # Evict the least recently used clients beyond the limit for each group.
        accepted = [one for one in self._clients if one in self._accepted]
        strangers = [one for one in self._clients if one not in self._accepted]
        for old in accepted[:-_MAX_SESSIONS] + strangers[:-_MAX_SESSIONS]:
            await self._clients.pop(old).__aexit__(None, None, None)
        return client


class ClusterVolumeBackend:
    """The volumes as one token permits."""

    def __init__(self, own: SyncClient, client: Client, accepted: Callable[[], None]) -> None:
        """Use `client`, and call `accepted` whenever the API server has accepted the token."""
        self._own = own
        self._client = client
        self._accepted = accepted

    def authenticate(self) -> None:
        self._ask(self._may("default", "create", DATA_VOLUMES.group, "datavolumes"))

    def session(self, namespace: str | None) -> Session:
        return self._ask(self._session(namespace or "default"))

    def volumes(self, namespace: str) -> list[dict[str, Any]]:
        now = dt.datetime.now(dt.UTC)
        found = self._ask(self._client.list(DATA_VOLUMES, namespace)).items
        found.sort(key=lambda body: str(body["metadata"]["name"]))
        return [row(body, share_of(body), now) for body in found]

    def create(self, body: Object) -> None:
        self._ask(self._client.create(DATA_VOLUMES, body))

    def delete(self, namespace: str, name: str, uid: str) -> None:
        self._ask(self._client.delete(DATA_VOLUMES, namespace, name, uid=uid))

    def upload_token(self, namespace: str, name: str) -> str:
        from cdi.remote.upload_access import ask_token

        return self._ask(ask_token(self._client, namespace, name))

    def _ask(self, asked: Coroutine[Any, Any, T]) -> T:
        found = self._own.run(asked)
        self._accepted()
        return found

    async def _session(self, namespace: str) -> Session:
        group = DATA_VOLUMES.group
        asked = {
            "list": ("list", group, "datavolumes"),
            "create": ("create", group, "datavolumes"),
            "delete": ("delete", group, "datavolumes"),
            "upload": ("create", UPLOAD_TOKEN_REQUESTS.group, UPLOAD_TOKEN_REQUESTS.plural),
        }
        reviews = [self._may(namespace, *what) for what in asked.values()]
        namespaces = self._names(self._client.list(NAMESPACES, metadata_only=True))
        classes = self._names(self._client.list(STORAGE_CLASSES, metadata_only=True))
        known, offered, *allowed = await asyncio.gather(namespaces, classes, *reviews)
        return Session(
            namespace=namespace,
            namespaces=tuple(known),
            may=dict(zip(asked, map(bool, allowed), strict=True)),
            storage_classes=tuple(offered),
        )

    async def _may(self, namespace: str, verb: str, group: str, resource: str) -> list[str]:
        """Return a list that is non-empty if the user may perform an operation."""
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        body = {
            "apiVersion": SELF_SUBJECT_ACCESS_REVIEWS.api_version,
            "kind": SELF_SUBJECT_ACCESS_REVIEWS.kind,
            "spec": {"resourceAttributes": attributes},
        }
        try:
            answer = await self._client.create(SELF_SUBJECT_ACCESS_REVIEWS, body)
        except ClusterForbidden as error:
            # Any authenticated user may create this review. With anonymous access, a bad token counts as anonymous.
            raise ClusterUnauthorized("the cluster rejected the token", remedy="get a new one") from error
        return ["yes"] if (answer.get("status") or {}).get("allowed") is True else []

    async def _names(self, listing: Coroutine[Any, Any, Any]) -> list[str]:
        """Return no names if listing is forbidden: a namespace can be typed in, and there is a default class."""
        try:
            found = await listing
        except (ClusterForbidden, NotFound):
            return []
        return sorted(str(body["metadata"]["name"]) for body in found.items)[:_MAX_NAMES]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _without_certificate(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a context with the same trust, without the client certificate that would authenticate its owner."""
    authorities = b"".join(context.get_ca_certs(binary_form=True))
    if not authorities:
        fresh = ssl.create_default_context()
    else:
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        fresh.load_verify_locations(cadata=authorities)
    fresh.verify_flags = context.verify_flags
    fresh.check_hostname = context.check_hostname
    fresh.verify_mode = context.verify_mode
    return fresh
