"""What the page's requests are carried out on: a cluster as the user's token lets one, or this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from cdi.store.base import Object

OPERATIONS = ("list", "create", "delete", "upload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What whoever shows a token may do in a namespace."""

    namespace: str
    namespaces: tuple[str, ...]
    """Those that may be listed; empty where that is not allowed."""
    may: dict[str, bool]
    """By `OPERATIONS`."""
    storage_classes: tuple[str, ...] = ()


class Desk(Protocol):
    """For one token; calls block.  Raises `CdiError`: `ClusterUnauthorized` for a token that is not good."""

    def authenticate(self) -> None:
        """Return only if the token is good."""
        ...

    def session(self, namespace: str | None) -> Session: ...

    def volumes(self, namespace: str) -> list[dict[str, Any]]:
        """Rows (`cdi.server.page.rows`)."""
        ...

    def create(self, body: Object) -> None:
        """A DataVolume.  Raises `AlreadyExists`, `InvalidManifest`."""
        ...

    def delete(self, namespace: str, name: str, uid: str) -> None:
        """A DataVolume and its volume; `uid` is that of the one that was meant.  Raises `NotFound`, `Conflict`."""
        ...

    def upload_token(self, namespace: str, name: str) -> str: ...


class Desks(Protocol):
    """Finds the desk of who asks."""

    @property
    def hint(self) -> str:
        """For who signs in: which token, and where it is got."""
        ...

    def recognises(self, token: str) -> bool:
        """Return whether the token is known to be good; False where only the cluster can tell.

        Must not wait for anything.  Raises `ClusterUnauthorized` for a token that is known not to be good.
        """
        ...

    def of(self, token: str) -> Desk:
        """Raises `ClusterUnauthorized`."""
        ...
