"""Kubernetes Events; a repeated event increments the count of the existing one."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from datetime import UTC, datetime

from cdi.api.errors import AlreadyExists, CdiError, NotFound
from cdi.api.timestamps import timestamp
from cdi.kube.client import Client
from cdi.kube.resources import EVENTS, Object
from cdi.logs import fields
from cdi.reconcile.actions import Event

COMPONENT = "cdi-controller"
_NAME = 200
_MESSAGE = 1024
"""Maximum length that API servers accept."""

log = logging.getLogger("cdi.controller")


async def event(client: Client, involved_object: Object, fact: Event, now: float) -> None:
    """Emit an event about an object; an error is only logged, as nothing depends on the event."""
    try:
        await _tell(client, involved_object, fact, now)
    except CdiError as error:
        what = fields(about=involved_object["metadata"]["name"], event=fact.reason, reason=error)
        log.warning("cannot record an event", extra=what)


async def _tell(client: Client, involved_object: Object, fact: Event, now: float) -> None:
    metadata = involved_object["metadata"]
    namespace = metadata.get("namespace") or "default"
    digest = hashlib.sha256(f"{metadata['uid']}\n{fact.reason}\n{fact.message}".encode()).hexdigest()[:16]
    name = f"{metadata['name'][:_NAME].rstrip('.-')}.{digest}"
    moment = timestamp(datetime.fromtimestamp(now, UTC))
    reference = {
        "apiVersion": involved_object["apiVersion"],
        "kind": involved_object["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    if metadata.get("namespace"):
        reference["namespace"] = namespace
    body: Object = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": reference,
        "type": fact.type,
        "reason": fact.reason,
        "message": fact.message[:_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
    try:
        await client.create(EVENTS, body)
    except AlreadyExists:
        with contextlib.suppress(NotFound):  # it has just expired, so its latest repetition is dropped too
            known = await client.get(EVENTS, namespace, name)
            again = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": moment}
            await client.patch(EVENTS, namespace, name, again)
