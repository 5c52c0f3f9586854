"""Garbage collection of objects and files without an owner."""

from __future__ import annotations

import contextlib
from collections import defaultdict

from cdi.api.errors import CdiError, Conflict, NotFound
from cdi.api.kinds import kind_named
from cdi.client.status_view import phase_of
from cdi.local import events
from cdi.local.environment import Environments
from cdi.local.launcher import Launcher
from cdi.local.lister import Observed
from cdi.local.tasks import Tasks
from cdi.store.base import Key, Object, Store

_OBJECTS_OF_TASKS = {"poll": "dataimportcrons", "proof": "persistentvolumeclaims"}
"""Kind of the objects whose UIDs name the tasks of a kind."""


def collect_garbage(
    store: Store, observed: Observed, launcher: Launcher, environments: Environments, tasks: Tasks
) -> bool:
    """Delete objects without owners, events of deleted objects, workers without a PVC, and unused environments.

    Polls and proofs are deleted with their DataImportCron or PVC. Environments are unused once their DataVolume is
    deleted or done, or their DataImportCron is deleted.

    Returns:
        Whether it has to be called again soon: a worker is being stopped, or manifests are being applied.
    """
    uids = observed.uids()
    for plural in (
        "persistentvolumeclaims",
        "datavolumes",
        "datasources",
        "dataimportcrons",
        "secrets",
        "configmaps",
    ):
        for key in list(observed.keys(plural)):
            body = observed.body(key)
            if body is not None and _is_orphan(store, body, uids):
                _delete(store, key, body)
    by_object: dict[str, list[tuple[int, Key, Object]]] = defaultdict(list)
    for key in list(observed.keys("events")):
        body = observed.body(key)
        if body is None:
            continue
        uid = (body.get("involvedObject") or {}).get("uid")
        if uid not in uids:
            _delete(store, key, body)
        else:
            by_object[uid].append((int(body["metadata"]["resourceVersion"]), key, body))
    for told in by_object.values():
        for _, key, body in sorted(told, key=lambda entry: entry[0])[: -events.MAX_EVENTS]:
            _delete(store, key, body)
    claims = {
        body["metadata"]["uid"]
        for key in observed.keys("persistentvolumeclaims")
        if (body := observed.body(key)) is not None
    }
    left = False
    for uid in launcher.known():
        if uid not in claims and not _exists(store, uid):
            left = not launcher.forget(uid) or left
    left = tasks.collect(lambda task, uid: uid in uids or _exists(store, uid, _OBJECTS_OF_TASKS[task])) or left
    return environments.collect(lambda key: _is_at_work(store, key)) or left


def _is_at_work(store: Store, key: Key) -> bool:
    """Return whether a DataVolume is not done, or a DataImportCron exists.

    Read the store itself, because the cache may miss a recent apply.
    """
    try:
        body = store.get(key)
        return key.plural == "dataimportcrons" or not phase_of(body).final
    except NotFound:
        return False
    except CdiError:
        # It was damaged by hand, and may be repaired.
        return True


def _is_orphan(store: Store, body: Object, uids: set[str]) -> bool:
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
            if store.get(key)["metadata"]["uid"] == owner.get("uid"):
                return False
    return True


def _exists(store: Store, uid: str, plural: str = "persistentvolumeclaims") -> bool:
    """Return whether an object exists; read the store itself, because the cache may be older than the worker."""
    return any(body["metadata"]["uid"] == uid for body in store.list(plural))


def _delete(store: Store, key: Key, body: Object) -> None:
    with contextlib.suppress(NotFound, Conflict):
        store.delete(key, uid=body["metadata"]["uid"])
