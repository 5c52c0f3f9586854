"""Recorder of Events in a store; a repeated Event increments the count of the existing one."""

from __future__ import annotations

import contextlib

from cdi.api.errors import AlreadyExists, NotFound, TargetFull
from cdi.reconcile.actions import Event
from cdi.reconcile.event_object import build_event, build_repetition
from cdi.store.base import Key, Object, Store, update_with_retry

COMPONENT = "cdi"
MAX_EVENTS = 50
"""Number of Events that are kept for one object."""


class EventRecorder:
    """Recorder of Events about the objects of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, involved_object: Object, event: Event, now: float) -> None:
        """Record an Event about an object, unless the disk is full: nothing depends on the Event.

        The status has the same information, and space is reserved for it.
        """
        body = build_event(involved_object, event, now, component=COMPONENT)
        with contextlib.suppress(TargetFull):
            try:
                self._store.create(body)
            except AlreadyExists:
                key = Key.of_object(body)
                with contextlib.suppress(NotFound):
                    update_with_retry(self._store, key, lambda known: known.update(build_repetition(known, now)))

    def events_of(self, involved_object: Object) -> list[Object]:
        """Return the Events of one object, oldest first."""
        metadata = involved_object["metadata"]
        found = [
            event
            for event in self._store.list("events", metadata.get("namespace") or "default")
            if (event.get("involvedObject") or {}).get("uid") == metadata["uid"]
        ]
        return sorted(found, key=lambda event: (event["lastTimestamp"], int(event["metadata"]["resourceVersion"])))
