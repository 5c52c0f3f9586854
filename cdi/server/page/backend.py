"""Interface between the page and its volumes: those of a cluster, with the user's token, or of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from cdi.store.base import Object

OPERATIONS = ("list", "create", "delete", "upload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The permissions of a token in a namespace."""

    namespace: str
    namespaces: tuple[str, ...]
    """The namespaces; empty if listing them is forbidden."""
    may: dict[str, bool]
    """Permissions by `OPERATIONS`."""
    storage_classes: tuple[str, ...] = ()


class VolumeBackend(Protocol):
    """Volumes as one token permits; calls block and raise `CdiError`, `ClusterUnauthorized` for an invalid token."""

    def authenticate(self) -> None:
        """Return only if the token is valid."""
        ...

    def session(self, namespace: str | None) -> Session: ...

    def volumes(self, namespace: str) -> list[dict[str, Any]]:
        """Return the rows of a namespace (`cdi.server.page.view_model`)."""
        ...

    def create(self, body: Object) -> None:
        """Create a DataVolume; raise `AlreadyExists` or `InvalidManifest`."""
        ...

    def delete(self, namespace: str, name: str, uid: str) -> None:
        """Delete a DataVolume and its volume if its UID is `uid`; raise `NotFound` or `Conflict`."""
        ...

    def upload_token(self, namespace: str, name: str) -> str: ...


class BackendProvider(Protocol):
    """Provider of the volumes that a token permits."""

    @property
    def hint(self) -> str:
        """The text of the sign-in form: which token is needed, and where to get it."""
        ...

    def recognises(self, token: str) -> bool:
        """Return whether the token is known to be valid; False if only the cluster can tell.

        Must not block. Raises `ClusterUnauthorized` for a token that is known to be invalid.
        """
        ...

    def of(self, token: str) -> VolumeBackend:
        """Return the volumes that the token permits; raise `ClusterUnauthorized`."""
        ...
