"""Interface of the commands to their backends: this machine (`LocalBackend`) or a cluster (`cdi.remote`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self

from cdi.api.errors import NotFound
from cdi.api.job import Outcome, Progress
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, kind_named
from cdi.client.document import Manifest
from cdi.store.base import Key, Object, Watch

Section = tuple[str, list[tuple[str, str]]]
"""A title, and labels with values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fraction:
    """Progress of an import as a fraction from 0.0 to 1.0, if nothing more is known."""

    fraction: float


Advance = Progress | Fraction
Objects = list[Object]
OnUpdate = Callable[[Object, Advance | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The result of applying one manifest."""

    kind: str
    namespace: str
    name: str
    action: str
    """One of ``created``, ``configured`` and ``unchanged``."""
    unknown: tuple[str, ...] = ()
    """Paths of unknown fields, which have no effect."""


class Reader(Protocol):
    """The read-only half of a `cdi.store.base.Store`."""

    def get(self, key: Key) -> Object:
        """Return an object; raise `NotFound`."""
        ...

    def list(self, plural: str, namespace: str | None = None) -> Objects:
        """Return objects by namespace, then name; of all namespaces if None."""
        ...


class ProgressWatch(Protocol):
    """Observation of objects that are waited for."""

    def look(self, key: Key) -> tuple[Object, Advance | None]:
        """Return the object's current state and the progress of its import; raise `NotFound`."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait until something may have changed, for at most so many seconds."""
        ...


class Backend(Protocol):
    """Operations of the commands; kinds are given by any of their names, the namespace None means ``default``."""

    store: Reader

    def apply(
        self,
        manifests: Iterable[Manifest],
        *,
        namespace: str | None = None,
        dry_run: bool = False,
        strict: bool = False,
    ) -> list[Applied]:
        """Validate all manifests, then write all of them unless `dry_run` is set.

        Args:
            manifests: The manifests.
            namespace: The namespace of manifests without one.
            dry_run: Write nothing.
            strict: Reject unknown fields.

        Raises:
            InvalidManifest: A manifest is invalid.
        """
        ...

    def get(self, kind: str, namespace: str | None, name: str) -> Object:
        """Return an object; raise `NotFound`."""
        return self.store.get(Key.of(kind, namespace, name))

    def list(self, kind: str, namespace: str | None = None) -> Objects:
        """Return the objects of a kind, of all namespaces if None."""
        return self.store.list(kind_named(kind).plural, namespace)

    def owned_claim(self, key: Key, uid: str) -> Object | None:
        """Return the PVC of a DataVolume with this UID; None if it has none, or the object is of another kind."""
        if key.plural != DATA_VOLUMES.plural:
            return None
        try:
            claim = self.store.get(Key(CLAIMS.plural, key.namespace, key.name))
        except NotFound:
            return None
        owners = claim["metadata"].get("ownerReferences") or []
        return claim if any(owner.get("uid") == uid for owner in owners) else None

    def delete(
        self, kind: str, namespace: str | None, name: str, *, cascade: bool = True, timeout: float = 120.0
    ) -> None:
        """Delete an object and its dependents, and wait until all are deleted.

        Without `cascade`, a DataVolume's PVC and volume are kept.

        Raises `NotFound`, or `WaitTimeout` after `timeout` seconds.
        """
        ...

    def annotate(
        self,
        kind: str,
        namespace: str | None,
        name: str,
        annotations: Mapping[str, str | None],
        *,
        uid: str,
        version: str | None = None,
    ) -> Object:
        """Set annotations of an object, None to remove one, and return the object.

        Raises:
            NotFound: There is no such object with this UID.
            Conflict: Its resourceVersion is not `version`.
        """
        ...

    def version_object(self, namespace: str, name: str) -> Object | None:
        """Return the PVC, or else the VolumeSnapshot, of a version of a golden image; None if there is neither."""
        ...

    def events(self, namespace: str | None, name: str, kind: str = "dv") -> Objects:
        """Return an object's events, oldest first; raise `NotFound`."""
        ...

    def changes(self, plurals: Collection[str], namespace: str | None) -> Watch:
        """Watch objects of these kinds in `namespace`, in all if None, starting with the existing ones.

        Changes in other namespaces may be reported as well.
        """
        ...

    def courses(self, keys: Collection[Key]) -> AbstractContextManager[ProgressWatch]:
        """Observe these objects in order to wait for them."""
        ...

    def progress_of(self, body: Object) -> Advance | None:
        """Return the progress of a DataVolume's newest worker, or None if there is none."""
        ...

    def outcome(self, namespace: str | None, name: str) -> Outcome | None:
        """Return the outcome of a DataVolume's newest worker, if it has ended and is still known; raise `NotFound`."""
        ...

    def about(self, body: Object) -> Iterator[Section]:
        """Yield sections about a DataVolume or PVC: where its volume is, and what its worker does."""
        ...

    def log(self, namespace: str | None, name: str, *, follow: bool = False) -> Iterator[str]:
        """Yield lines of the workers' log; with `follow`, until the DataVolume is done; raise `NotFound`."""
        ...

    def limit(
        self, namespace: str | None, name: str, *, bandwidth: int | None = None, connections: int | None = None
    ) -> bool:
        """Set limits for this and later attempts: 0 removes a limit, None keeps it.

        Args:
            namespace: The namespace of the DataVolume.
            name: The name of the DataVolume.
            bandwidth: Bytes per second.
            connections: Number of concurrent range requests.

        Returns:
            Whether a running worker has received them.

        Raises:
            NotFound: There is no such DataVolume.
            InvalidManifest: A limit is invalid.
        """
        ...

    def close(self) -> None:
        """Release connections."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
