"""What the commands work on: the same calls, over this machine (`Embedded`) or a cluster (`cdi.runtime.cluster`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self

from cdi.api.job import Outcome, Progress
from cdi.runtime.document import Manifest
from cdi.store.base import Key, Object, Watch

Section = tuple[str, list[tuple[str, str]]]
"""A title, and names with what is to be said of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How far an import is, where only that is told: 0.0 to 1.0."""

    fraction: float


Advance = Progress | Share
Objects = list[Object]
OnUpdate = Callable[[Object, Advance | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of one manifest."""

    kind: str
    namespace: str
    name: str
    action: str
    """``created``, ``configured`` or ``unchanged``."""
    unknown: tuple[str, ...] = ()
    """Paths of fields that its kind does not have, and that are not followed."""


class Reader(Protocol):
    """The half of a `cdi.store.base.Store` that changes nothing."""

    def get(self, key: Key) -> Object:
        """Raises `NotFound`."""
        ...

    def list(self, plural: str, namespace: str | None = None) -> Objects:
        """By namespace, then name; of all namespaces where None."""
        ...


class Courses(Protocol):
    """Objects that are waited for."""

    def look(self, key: Key) -> tuple[Object, Advance | None]:
        """An object as it is now, and how far its import is.  Raises `NotFound`."""
        ...

    def pause(self, seconds: float) -> None:
        """Until something may have changed, at most so long."""
        ...


class Backend(Protocol):
    """Kinds are given by any of their names; namespaces are ``default`` where None."""

    @property
    def store(self) -> Reader: ...

    def apply(
        self,
        manifests: Iterable[Manifest],
        *,
        namespace: str | None = None,
        dry_run: bool = False,
        strict: bool = False,
    ) -> list[Applied]:
        """Check all, then write all, unless it is a `dry_run`.  `namespace` is for manifests that name none.

        Raises `InvalidManifest`, where it is `strict` also for fields that are not known.
        """
        ...

    def get(self, kind: str, namespace: str | None, name: str) -> Object:
        """Raises `NotFound`."""
        ...

    def list(self, kind: str, namespace: str | None = None) -> Objects:
        """Of all namespaces where None."""
        ...

    def delete(
        self, kind: str, namespace: str | None, name: str, *, cascade: bool = True, timeout: float = 120.0
    ) -> None:
        """Delete an object and what it owns, and wait until that is gone.

        With `cascade` False the claim of a DataVolume stays, volume and all.  Raises `NotFound`, `WaitTimeout`.
        """
        ...

    def events(self, namespace: str | None, name: str, kind: str = "dv") -> Objects:
        """Oldest first.  Raises `NotFound`."""
        ...

    def changes(self, plurals: Collection[str], namespace: str | None) -> Watch:
        """What happens to objects of these kinds in `namespace`, in all where None, beginning with what there is.

        Those of other namespaces may be told of as well.
        """
        ...

    def courses(self, keys: Collection[Key]) -> AbstractContextManager[Courses]:
        """To wait for these objects."""
        ...

    def progress_of(self, body: Object) -> Advance | None:
        """How far a DataVolume's newest worker is; None where there is none."""
        ...

    def outcome(self, namespace: str | None, name: str) -> Outcome | None:
        """Of a DataVolume's newest worker once it has ended, where that is still known.  Raises `NotFound`."""
        ...

    def about(self, body: Object) -> Iterator[Section]:
        """Of a DataVolume or claim: where its volume is, what its worker does."""
        ...

    def log(self, namespace: str | None, name: str, *, follow: bool = False) -> Iterator[str]:
        """Lines of the workers' log; with `follow`, until the DataVolume is done.  Raises `NotFound`."""
        ...

    def limit(
        self, namespace: str | None, name: str, *, bandwidth: int | None = None, connections: int | None = None
    ) -> bool:
        """Set limits for this and later attempts: bytes per second and ranges at a time, 0 lifts them, None keeps them.

        True where a worker runs and was told.  Raises `NotFound`, `InvalidManifest`.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
