"""Interface of an object store with the semantics of the Kubernetes API.

Objects are plain dictionaries, as written in a manifest. A store gives each object an identity (``metadata.uid``), a
version (``metadata.resourceVersion``) that changes with every write and only then, and a watch. The rules follow the
Kubernetes API conventions (sections *Metadata*, *Concurrency Control* and *Finalizers*), so that a reconciler works the
same with every store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from cdi.api.errors import Conflict, InvalidManifest, NotFound
from cdi.api.json_document import json_type
from cdi.api.kinds import CONFIG_MAPS, DATA_IMPORT_CRONS, EVENTS, SECRETS, Resource, kind_named
from cdi.api.kinds import Object as Object  # noqa: PLC0414  exported to the users of a store

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAME_LENGTH = 253
SERVER_OWNED = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
)
"""Metadata fields that the server sets and a creator cannot; the namespace is taken from the key only."""
_AMEND_TRIES = 50
_WITHOUT_STATUS = (SECRETS, CONFIG_MAPS, EVENTS, DATA_IMPORT_CRONS)
"""Kinds without a status, and DataImportCron, whose metadata and status are written by one request."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Identity of one object by kind, namespace and name."""

    plural: str
    namespace: str
    """Namespace; empty for cluster-scoped kinds."""
    name: str

    @classmethod
    def of(cls, word: str, namespace: str | None, name: str) -> Self:
        """Return the validated key of the object `name`.

        Args:
            word: Any name of the kind, as accepted by `kind_named`.
            namespace: Ignored for cluster-scoped kinds; ``default`` if None or empty.
            name: Name of the object.

        Raises:
            NotFound: The kind is unknown.
            InvalidManifest: The name or namespace is not valid in Kubernetes (RFC 1123).
        """
        kind = kind_named(word)
        space = (namespace or "default") if kind.namespaced else ""
        if kind.namespaced and not LABEL.fullmatch(space):
            raise InvalidManifest(
                f"{space[:80]!r} is not a namespace: use lower-case letters, digits and '-', at most 63",
                where="metadata.namespace",
            )
        if len(name) > NAME_LENGTH or not SUBDOMAIN.fullmatch(name):
            raise InvalidManifest(
                f"{name[:80]!r} is not a name: use lower-case letters, digits, '-' and '.', at most {NAME_LENGTH}",
                where="metadata.name",
            )
        return cls(kind.plural, space, name)

    @classmethod
    def of_object(cls, body: Mapping[str, Any]) -> Self:
        """Return the key of a manifest; raise the same errors as `of`."""
        metadata = body.get("metadata")
        if not isinstance(metadata, dict):
            raise InvalidManifest("metadata is missing", where="metadata")
        kind, name, namespace = body.get("kind"), metadata.get("name"), metadata.get("namespace")
        if not isinstance(kind, str) or not kind:
            raise InvalidManifest("kind is missing", where="kind")
        if name is None or name == "":
            raise InvalidManifest("the name is missing", where="metadata.name")
        for field, value in (("name", name), ("namespace", namespace)):
            if value is not None and not isinstance(value, str):
                raise InvalidManifest(
                    f"the {field} must be of type string, not {json_type(value)}; put it in quotes",
                    where=f"metadata.{field}",
                )
        return cls.of(kind, namespace, name)

    @property
    def kind(self) -> Resource:
        return kind_named(self.plural)

    def __str__(self) -> str:
        path = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind.singular} {path}"


def has_status(key: Key) -> bool:
    """Return whether the status of an object is written separately from the rest."""
    return key.kind not in _WITHOUT_STATUS


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Change of one object since the previous poll; intermediate states are not reported."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    key: Key
    body: Object
    """Current object, or its last known state if it was deleted."""


class Watch(Protocol):
    """Stream of changes, beginning with an ``ADDED`` for every existing object."""

    def poll(self, timeout: float) -> list[Change]:
        """Return the changes since the last call, waiting up to `timeout` seconds for the first one."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Store(Protocol):
    """Object store by kind, namespace and name.

    All methods block and may be called from any thread and process. Returned objects belong to the caller, and objects
    passed in are not retained. Every method that writes returns the object as stored.
    """

    def get(self, key: Key) -> Object:
        """Return the object; raise `NotFound` if it does not exist."""
        ...

    def list(self, plural: str, namespace: str | None = None) -> list[Object]:
        """Return the objects of a kind, sorted by namespace and name; of all namespaces if `namespace` is None."""
        ...

    def create(self, body: Object) -> Object:
        """Create an object; a status in `body` is dropped if the kind has a status.

        Raises:
            AlreadyExists: An object with this key exists.
            InvalidManifest: `body` is not a valid object.
        """
        ...

    def update(self, body: Object) -> Object:
        """Replace everything but the status.

        An update without changes keeps the resourceVersion; a change outside of metadata increments
        ``metadata.generation``. Removing the last finalizer of an object that is being deleted removes the object.

        Raises:
            NotFound: The object does not exist.
            Conflict: `body` has a resourceVersion or uid that is not the current one.
        """
        ...

    def update_status(self, body: Object) -> Object:
        """Replace the status only; raise the same errors as `update`."""
        ...

    def delete(self, key: Key, *, uid: str | None = None) -> Object | None:
        """Delete an object, or set its ``metadata.deletionTimestamp`` if it has finalizers.

        Returns:
            None once the object is removed, otherwise the object that waits for its finalizers.

        Raises:
            NotFound: The object does not exist.
            Conflict: `uid` is not the object's uid.
        """
        ...

    def watch(self, plurals: Collection[str]) -> Watch:
        """Watch these kinds in all namespaces."""
        ...


def plain(body: Object) -> Object:
    """Return a deep copy as plain JSON types; raise `InvalidManifest` if `body` is not plain JSON."""
    try:
        copied: Object = json.loads(json.dumps(body, allow_nan=False))  # noqa: TID251  a copy
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidManifest(f"the object is not plain JSON: {error}") from error
    return copied


def update_with_retry(store: Store, key: Key, change: Callable[[Object], None], *, uid: str | None = None) -> Object:
    """Read an object, let `change` modify it in place, and write it; retry on conflicts.

    Raises:
        NotFound: The object does not exist, or its uid is not `uid`.
        Conflict: Every attempt conflicted with another writer.

    Other errors of `Store.get` and `Store.update` are passed on.
    """
    for _ in range(_AMEND_TRIES):
        body = store.get(key)
        if uid is not None and body["metadata"]["uid"] != uid:
            raise NotFound(f"{key} was deleted or replaced")
        change(body)
        try:
            return store.update(body)
        except Conflict:
            continue
    raise Conflict(f"{key} is changed by other clients faster than it can be written")
