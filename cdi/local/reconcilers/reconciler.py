"""Interface of the reconcilers of one machine, and the changes that they map to keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cdi.api.names import ANN_POD_PHASE
from cdi.store.base import Change, Key

_SOURCES = ("datasources", "dataimportcrons")
_VOLUMES = ("datavolumes", "persistentvolumeclaims")


class Task(StrEnum):
    """Work that is about no single object."""

    GARBAGE_COLLECTION = "garbage collection"


Request = Key | Task
"""What a work queue of this machine holds: an object to reconcile, or a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a reconcile that succeeded."""

    requeue_after: float | None = None
    """Seconds after which to reconcile again even if nothing changes."""
    keeps_running: bool = True
    """Whether the supervisor waits for that moment; otherwise it may exit and be started again by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes of one poll, and what they mean for other objects than the changed ones."""

    changes: Sequence[Change] = ()
    affects_references: bool = False
    """Whether an object that others refer to has changed: a DataSource, or the state of a volume."""
    affects_all: bool = False
    """Whether a Secret, a ConfigMap, a StorageProfile or the configuration has changed."""

    def keys(self, plural: str) -> set[Key]:
        """Return the keys of the changed objects of a kind."""
        return {change.key for change in self.changes if change.key.plural == plural}


class ChangeTracker:
    """Memory of what other objects can see of each volume, which most changes, such as progress, leave as it is."""

    def __init__(self) -> None:
        self._visible: dict[Key, tuple[object, ...]] = {}

    def track(self, changes: Sequence[Change]) -> Changes:
        """Return the changes of a poll with their meaning for other objects."""
        affects_references = affects_all = False
        for change in changes:
            if change.key.plural in _VOLUMES:
                affects_references = self._is_visible(change) or affects_references
            elif change.key.plural in _SOURCES:
                affects_references = True
            elif change.key.plural != "events":
                affects_all = True
        return Changes(changes=changes, affects_references=affects_references, affects_all=affects_all)

    def _is_visible(self, change: Change) -> bool:
        before = self._visible.pop(change.key, None)
        if change.type == "DELETED":
            return before is not None
        metadata, status = change.body["metadata"], change.body.get("status") or {}
        self._visible[change.key] = after = (
            metadata["uid"],
            status.get("phase"),
            "deletionTimestamp" in metadata,
            (metadata.get("annotations") or {}).get(ANN_POD_PHASE),
            str(metadata.get("labels")),
        )
        return after != before


class Reconciler(Protocol):
    """Reconciler of the objects of one kind."""

    def requests_for(self, changes: Changes) -> Iterable[Key]:
        """Return what has to be reconciled because of these changes."""
        ...

    def reconcile(self, key: Key) -> Result:
        """Reconcile one object, which may have been deleted.

        Raises:
            Conflict: The object has changed in the meantime.
            InvalidManifest: The object is invalid, and stays so until it changes.
            CdiError: Another error, which may be gone at the next try.
        """
        ...
