"""Recorder of Kubernetes Events; a repeated Event increments the count of the existing one."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from datetime import UTC, datetime
from typing import Any

from cdi.api.errors import AlreadyExists, CdiError, NotFound
from cdi.api.timestamps import timestamp
from cdi.logs import fields
from cdi.kube.client import Client
from cdi.kube.resources import EVENTS, Object
from cdi.reconcile.actions import Event

COMPONENT = "cdi-controller"
_MAX_NAME = 200
"""Maximum length of the part of an Event's name that is the involved object's name."""
_MAX_MESSAGE = 1024
"""Maximum length of a message in characters that API servers accept."""

log = logging.getLogger("cdi.controller")


class EventRecorder:
    """Recorder of Events about any objects, at an API server."""

    def __init__(self, client: Client, *, component: str = COMPONENT) -> None:
        self._client = client
        self._component = component

    async def record(self, involved_object: Object, event: Event, now: float) -> None:
        """Record an Event about an object; an error is only logged, as nothing depends on the Event."""
        try:
            await self._record(build_event(involved_object, event, now, component=self._component), now)
        except CdiError as error:
            details = fields(about=involved_object["metadata"]["name"], event=event.reason, reason=error)
            log.warning("cannot record an event", extra=details)

    async def _record(self, body: Object, now: float) -> None:
        try:
            await self._client.create(EVENTS, body)
        except AlreadyExists:
            namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
            with contextlib.suppress(NotFound):  # it has just expired, so its latest repetition is dropped too
                known = await self._client.get(EVENTS, namespace, name)
                await self._client.patch(EVENTS, namespace, name, build_repetition(known, now))


def build_event(involved_object: Object, event: Event, now: float, *, component: str = COMPONENT) -> Object:
    """Return the Event object of a first occurrence; equal Events of an object have the same name.

    Args:
        involved_object: The object that the Event is about.
        event: Type, reason and message.
        now: Current time in seconds since the epoch.
        component: Name of the component that reports it.

    """
    metadata = involved_object["metadata"]
    namespace = metadata.get("namespace") or "default"
    digest = hashlib.sha256(f"{metadata['uid']}\n{event.reason}\n{event.message}".encode()).hexdigest()[:16]
    reference = {
        "apiVersion": involved_object["apiVersion"],
        "kind": involved_object["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    if metadata.get("namespace"):
        reference["namespace"] = namespace
    moment = _timestamp(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:_MAX_NAME].rstrip('.-')}.{digest}", "namespace": namespace},
        "involvedObject": reference,
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_MAX_MESSAGE],
        "source": {"component": component},
        "reportingComponent": component,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }


def build_repetition(known: Object, now: float) -> dict[str, Any]:
    """Return the fields that change when an Event that is known occurs again."""
    return {"count": int(known.get("count") or 1) + 1, "lastTimestamp": _timestamp(now)}


def _timestamp(now: float) -> str:
    return timestamp(datetime.fromtimestamp(now, UTC))
