"""Recorder of Kubernetes Events; a repeated Event increments the count of the existing one."""

from __future__ import annotations

import contextlib
import logging

from cdi.api.errors import AlreadyExists, CdiError, NotFound
from cdi.api.kinds import EVENTS, Object
from cdi.kube.client import Client
from cdi.logs import fields
from cdi.reconcile.actions import Event
from cdi.reconcile.event_object import build_event, build_repetition

COMPONENT = "cdi-controller"

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
