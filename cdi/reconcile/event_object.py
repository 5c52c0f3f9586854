"""Kubernetes Events as objects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cdi.api.timestamps import timestamp
from cdi.reconcile.actions import Event

_MAX_NAME = 200
"""Maximum length of the part of an Event's name that is the involved object's name."""
_MAX_MESSAGE = 1024
"""Maximum length of a message in characters that API servers accept."""


def build_event(involved_object: Mapping[str, Any], event: Event, now: float, *, component: str) -> dict[str, Any]:
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


def build_repetition(known: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return the fields that change when an Event that is known occurs again."""
    return {"count": int(known.get("count") or 1) + 1, "lastTimestamp": _timestamp(now)}


def _timestamp(now: float) -> str:
    return timestamp(datetime.fromtimestamp(now, UTC))
