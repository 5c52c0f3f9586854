"""Volumes of this machine, for clients with the single token of ``cdi serve``."""

from __future__ import annotations

import datetime as dt
import hmac
from typing import Any

from cdi.api.errors import AlreadyExists, ClusterUnauthorized, Conflict
from cdi.local.backend import LocalBackend
from cdi.server.page.backend import OPERATIONS, Session
from cdi.server.page.view_model import row
from cdi.store.base import Key, Object


class LocalBackendProvider:
    """Provider of the local volumes, all of which one token permits."""

    hint = "cdi serve has printed the token, and a link that signs in automatically."

    def __init__(self, embedded: LocalBackend, token: str) -> None:
        self._token = token.encode()
        self._backend = LocalVolumeBackend(embedded, token)

    def recognises(self, token: str) -> bool:
        if not hmac.compare_digest(token.encode(), self._token):
            raise ClusterUnauthorized("this is not the token that cdi serve printed", remedy="copy the token again")
        return True

    def of(self, token: str) -> LocalVolumeBackend:
        self.recognises(token)
        return self._backend


class LocalVolumeBackend:
    """The volumes of one CDI_HOME."""

    def __init__(self, embedded: LocalBackend, token: str) -> None:
        self._embedded = embedded
        self._token = token

    def authenticate(self) -> None:
        """Do nothing: `LocalBackendProvider.of` has verified the token."""

    def session(self, namespace: str | None) -> Session:
        space = Key.of("dv", namespace, "any").namespace
        known = {body["metadata"]["namespace"] for body in self._embedded.list("dv")}
        return Session(
            namespace=space,
            namespaces=tuple(sorted({"default", space, *known})),
            may=dict.fromkeys(OPERATIONS, True),
        )

    def volumes(self, namespace: str) -> list[dict[str, Any]]:
        now = dt.datetime.now(dt.UTC)
        found = self._embedded.list("dv", namespace)
        return [row(body, self._embedded.progress_of(body), now) for body in found]

    def create(self, body: Object) -> None:
        key = Key.of_object(body)
        if any(one["metadata"]["name"] == key.name for one in self._embedded.list("dv", key.namespace)):
            raise AlreadyExists(f"volume {key.name!r} already exists", remedy="choose another name")
        self._embedded.apply([body])

    def delete(self, namespace: str, name: str, uid: str) -> None:
        if self._embedded.get("dv", namespace, name)["metadata"]["uid"] != uid:
            raise Conflict("the volume was replaced by another one with this name", remedy="reload the list and repeat")
        self._embedded.delete("dv", namespace, name)

    def upload_token(self, namespace: str, name: str) -> str:
        self._embedded.get("dv", namespace, name)
        return f"{self._token}~{namespace}~{name}"
