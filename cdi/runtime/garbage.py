"""What nobody owns any more goes."""

from __future__ import annotations

import contextlib
from collections import defaultdict

from cdi.api.errors import CdiError, Conflict, NotFound
from cdi.runtime import events
from cdi.runtime.environment import Environments
from cdi.runtime.launcher import Launcher
from cdi.runtime.observe import Observed
from cdi.runtime.view import phase_of
from cdi.store.base import Key, Object, Store
from cdi.store.kinds import kind_of


def collect(store: Store, observed: Observed, launcher: Launcher, environments: Environments) -> bool:
    """Delete objects whose owners are gone, events of nobody, workers of no claim, and the environments of DataVolumes
    that are gone or done.

    True where it must be called again soon: a worker is being stopped, something is being applied.
    """
    uids = observed.uids()
    for plural in ("persistentvolumeclaims", "datavolumes", "datasources", "secrets", "configmaps"):
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
        for _, key, body in sorted(told, key=lambda entry: entry[0])[: -events.KEPT]:
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
    return environments.collect(lambda key: _is_at_work(store, key)) or left


def _is_at_work(store: Store, key: Key) -> bool:
    """Asked of the store itself, as what was observed may be older than what was applied."""
    try:
        return not phase_of(store.get(key)).final
    except NotFound:
        return False
    except CdiError:
        # Damaged by hand, and perhaps to be repaired.
        return True


def _is_orphan(store: Store, body: Object, uids: set[str]) -> bool:
    """All its owners are of kinds that are kept here, and gone.

    An owner of another kind lives somewhere else, in the cluster that a manifest was exported from for instance.
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
        if kind_of(key.plural).name != owner.get("kind"):
            return False
        with contextlib.suppress(NotFound):
            if store.get(key)["metadata"]["uid"] == owner.get("uid"):
                return False
    return True


def _exists(store: Store, uid: str) -> bool:
    """Asked of the store itself: what was observed may be older than the worker."""
    return any(body["metadata"]["uid"] == uid for body in store.list("persistentvolumeclaims"))


def _delete(store: Store, key: Key, body: Object) -> None:
    with contextlib.suppress(NotFound, Conflict):
        store.delete(key, uid=body["metadata"]["uid"])
