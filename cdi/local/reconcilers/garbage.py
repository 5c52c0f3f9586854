"""Garbage collector of objects and files without an owner."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from cdi.api.errors import CdiError, Conflict, NotFound
from cdi.api.kinds import kind_named
from cdi.client.status_view import phase_of
from cdi.local.environment import Environments
from cdi.local.event_recorder import MAX_EVENTS
from cdi.local.launcher import Launcher
from cdi.local.lister import Observed
from cdi.local.reconcilers.reconciler import Changes, Result, Task
from cdi.local.tasks import Tasks
from cdi.store.base import Key, Object, Store

_OWNED = ("persistentvolumeclaims", "datavolumes", "datasources", "dataimportcrons", "secrets", "configmaps")
_RETRY_INTERVAL = 0.1
"""Seconds until what could not be deleted yet is tried again."""
_OBJECTS_OF_TASKS = {"poll": "dataimportcrons", "proof": "persistentvolumeclaims"}
"""Kind of the objects whose UIDs name the tasks of a kind."""


class GarbageCollector:
    """Garbage collector of one CDI_HOME.

    It deletes objects without owners, events of deleted objects, workers without a PVC, polls and proofs without their
    DataImportCron or PVC, and environments whose DataVolume is deleted or done, or whose DataImportCron is deleted.
    """

    def __init__(
        self, store: Store, observed: Observed, launcher: Launcher, environments: Environments, tasks: Tasks
    ) -> None:
        self._store = store
        self._observed = observed
        self._launcher = launcher
        self._environments = environments
        self._tasks = tasks

    def requests_for(self, changes: Changes) -> Iterable[Task]:
        """Request a collection when an object was deleted or a DataVolume is done."""
        for change in changes.changes:
            if change.type == "DELETED" or (change.key.plural == "datavolumes" and phase_of(change.body).final):
                return (Task.GARBAGE_COLLECTION,)
        return ()

    def collect(self) -> Result:
        """Collect; requeue while a worker is being stopped or manifests are being applied."""
        uids = self._observed.uids()
        self._delete_orphans(uids)
        self._delete_events(uids)
        claims = {body["metadata"]["uid"] for _, body in self._bodies("persistentvolumeclaims")}
        left = False
        for uid in self._launcher.known():
            if uid not in claims and not self._exists(uid):
                left = not self._launcher.forget(uid) or left
        left = self._tasks.collect(lambda task, uid: uid in uids or self._exists(uid, _OBJECTS_OF_TASKS[task])) or left
        left = self._environments.collect(self._is_at_work) or left
        return Result(requeue_after=_RETRY_INTERVAL if left else None)

    def _bodies(self, plural: str) -> Iterator[tuple[Key, Object]]:
        for key in self._observed.keys(plural):
            if (body := self._observed.body(key)) is not None:
                yield key, body

    def _delete_orphans(self, uids: set[str]) -> None:
        for plural in _OWNED:
            for key, body in self._bodies(plural):
                if self._is_orphan(body, uids):
                    self._delete(key, body)

    def _delete_events(self, uids: set[str]) -> None:
        """Delete the events of deleted objects, and the oldest ones beyond what is kept of an object."""
        events_of: dict[str, list[tuple[int, Key, Object]]] = defaultdict(list)
        for key, body in self._bodies("events"):
            uid = (body.get("involvedObject") or {}).get("uid")
            if uid not in uids:
                self._delete(key, body)
            else:
                events_of[uid].append((int(body["metadata"]["resourceVersion"]), key, body))
        for events in events_of.values():
            for _, key, body in sorted(events, key=lambda entry: entry[0])[:-MAX_EVENTS]:
                self._delete(key, body)

    def _is_at_work(self, key: Key) -> bool:
        """Return whether a DataVolume is not done, or a DataImportCron exists.

        Read the store itself, because the cache may miss a recent apply.
        """
        try:
            body = self._store.get(key)
            return key.plural == "dataimportcrons" or not phase_of(body).final
        except NotFound:
            return False
        except CdiError:
            # It was damaged by hand, and may be repaired.
            return True

    def _is_orphan(self, body: Object, uids: set[str]) -> bool:
        """Return whether all owners are of kinds in this store, and deleted.

        An owner of another kind exists elsewhere, for example in the cluster that a manifest was exported from.
        """
        owners = body["metadata"].get("ownerReferences") or []
        if not owners or "deletionTimestamp" in body["metadata"]:
            return False
        for owner in owners:
            if owner.get("uid") in uids:
                return False
            try:
                key = Key.of(owner.get("kind", ""), body["metadata"].get("namespace"), owner.get("name", ""))
            except CdiError:
                return False
            if kind_named(key.plural).kind != owner.get("kind"):
                return False
            with contextlib.suppress(NotFound):
                if self._store.get(key)["metadata"]["uid"] == owner.get("uid"):
                    return False
        return True

    def _exists(self, uid: str, plural: str = "persistentvolumeclaims") -> bool:
        """Return whether an object exists; read the store itself, as the cache may be older than the worker."""
        return any(body["metadata"]["uid"] == uid for body in self._store.list(plural))

    def _delete(self, key: Key, body: Object) -> None:
        with contextlib.suppress(NotFound, Conflict):
            self._store.delete(key, uid=body["metadata"]["uid"])
