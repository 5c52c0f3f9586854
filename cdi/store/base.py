"""Where objects live, seen from those who use them: Kubernetes' own rules, without Kubernetes.

Objects are plain dictionaries as they stand in a manifest.  A store gives each one an identity (``metadata.uid``), a
version (``metadata.resourceVersion``) that changes with every write and with nothing else, and a watch.  The rules
are those of the Kubernetes API's conventions ("API conventions", sections *Metadata*, *Concurrency Control* and
*Finalizers*), so a reconciler cannot tell one store from another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from cdi.api.document import json_type
from cdi.api.errors import Conflict, InvalidManifest, NotFound
from cdi.store.kinds import Kind, kind_of

Object = dict[str, Any]
"""A manifest with ``apiVersion``, ``kind``, ``metadata``."""

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
"""Fields of the metadata that nobody who creates an object chooses; the namespace by its key only."""
_AMEND_TRIES = 50


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names one object."""

    plural: str
    namespace: str
    """Empty for kinds that belong to no namespace."""
    name: str

    @classmethod
    def of(cls, word: str, namespace: str | None, name: str) -> Self:
        """The checked key of `name`; `word` is any name of its kind.

        The namespace is ignored for kinds that have none, and is ``default`` where it is None or empty.
        Raises `NotFound` for an unknown kind, `InvalidManifest` for names that no API server would take (RFC 1123).
        """
        kind = kind_of(word)
        space = (namespace or "default") if kind.namespaced else ""
        if kind.namespaced and not LABEL.fullmatch(space):
            raise InvalidManifest(
                f"{space[:80]!r} is no namespace: lower-case letters, digits and '-', at most 63",
                where="metadata.namespace",
            )
        if len(name) > NAME_LENGTH or not SUBDOMAIN.fullmatch(name):
            raise InvalidManifest(
                f"{name[:80]!r} is no name: lower-case letters, digits, '-' and '.', at most {NAME_LENGTH}",
                where="metadata.name",
            )
        return cls(kind.plural, space, name)

    @classmethod
    def of_object(cls, body: Mapping[str, Any]) -> Self:
        """The key of a manifest; raises as `of` does."""
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
    def kind(self) -> Kind:
        return kind_of(self.plural)

    def __str__(self) -> str:
        path = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind.singular} {path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happened to one object since the watch last looked; only the newest state is told."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    key: Key
    body: Object
    """The object; its last known state where it was deleted."""


class Watch(Protocol):
    """Tells changes, beginning with everything that there is as ``ADDED``."""

    def poll(self, timeout: float) -> list[Change]:
        """Changes since the last call, waiting up to `timeout` seconds for the first of them."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Store(Protocol):
    """Objects by kind, namespace and name.  Calls block and may come from any thread and process.

    What comes out belongs to the caller; what goes in is not kept.  Every method that writes returns the object as
    it now stands.
    """

    def get(self, key: Key) -> Object:
        """Raises `NotFound`."""
        ...

    def list(self, plural: str, namespace: str | None = None) -> list[Object]:
        """By namespace, then name; of all namespaces where None."""
        ...

    def create(self, body: Object) -> Object:
        """Raises `AlreadyExists`, `InvalidManifest`.  A status in `body` is dropped where the kind has one."""
        ...

    def update(self, body: Object) -> Object:
        """Replace everything but the status.

        Raises `NotFound`; `Conflict` where `body` carries a resourceVersion or uid that is not the current one.
        A change of nothing keeps the version; a change beyond metadata raises ``metadata.generation``.  Taking the
        last finalizer off an object that is being deleted removes it.
        """
        ...

    def update_status(self, body: Object) -> Object:
        """Replace the status only; raises as `update` does."""
        ...

    def delete(self, key: Key, *, uid: str | None = None) -> Object | None:
        """Remove it, or, where it has finalizers, mark it with ``metadata.deletionTimestamp``.

        None once it is gone, else the marked object.  Raises `NotFound`; `Conflict` where `uid` is not its uid.
        """
        ...

    def watch(self, plurals: Collection[str]) -> Watch:
        """Of these kinds, in every namespace."""
        ...


def plain(body: Object) -> Object:
    """A copy of its own, of JSON only; raises `InvalidManifest` for anything else."""
    try:
        copied: Object = json.loads(json.dumps(body, allow_nan=False))  # noqa: TID251  a copy
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidManifest(f"the object is not plain JSON: {error}") from error
    return copied


def amend(store: Store, key: Key, change: Callable[[Object], None], *, uid: str | None = None) -> Object:
    """Read, let `change` alter it in place, write; again where somebody else was faster.

    Raises what `Store.get` and `Store.update` raise; `NotFound` also where `uid` is not the object's.
    """
    for _ in range(_AMEND_TRIES):
        body = store.get(key)
        if uid is not None and body["metadata"]["uid"] != uid:
            raise NotFound(f"the {key} that was meant is gone")
        change(body)
        try:
            return store.update(body)
        except Conflict:
            continue
    raise Conflict(f"{key} is changed faster than it can be written")
