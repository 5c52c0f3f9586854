"""Events as objects; a repeated event only increments its count."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import UTC, datetime

from cdi.api.errors import AlreadyExists, NotFound
from cdi.api.timestamps import timestamp
from cdi.reconcile.actions import Event
from cdi.store.base import Key, Object, Store, update_with_retry

MAX_EVENTS = 50
"""Number of events that are kept for one object."""
_NAME = 200
_MESSAGE = 1024


def record(store: Store, involved_object: Object, fact: Event, now: float) -> None:
    """Record an event about an object."""
    metadata = involved_object["metadata"]
    digest = hashlib.sha256(f"{metadata['uid']}\n{fact.reason}\n{fact.message}".encode()).hexdigest()[:16]
    name = f"{metadata['name'][:_NAME].rstrip('.-')}.{digest}"
    moment = timestamp(datetime.fromtimestamp(now, UTC))
    body: Object = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata.get("namespace") or "default"},
        "involvedObject": {
            "apiVersion": involved_object["apiVersion"],
            "kind": involved_object["kind"],
            "name": metadata["name"],
            "namespace": metadata.get("namespace", ""),
            "uid": metadata["uid"],
        },
        "type": fact.type,
        "reason": fact.reason,
        "message": fact.message[:_MESSAGE],
        "source": {"component": "cdi"},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }

    def again(event: Object) -> None:
        event["count"] = int(event.get("count", 1)) + 1
        event["lastTimestamp"] = moment

    try:
        store.create(body)
    except AlreadyExists:
        with contextlib.suppress(NotFound):
            update_with_retry(store, Key.of_object(body), again)


def of(store: Store, involved_object: Object) -> list[Object]:
    """Return the events of one object, oldest first."""
    metadata = involved_object["metadata"]
    found = [
        event
        for event in store.list("events", metadata.get("namespace") or "default")
        if (event.get("involvedObject") or {}).get("uid") == metadata["uid"]
    ]
    return sorted(found, key=lambda e: (e["lastTimestamp"], int(e["metadata"]["resourceVersion"])))
