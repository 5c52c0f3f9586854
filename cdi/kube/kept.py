"""Secrets and ConfigMaps that hold what a program made for itself, so that all its replicas have the same.

Several replicas do this at once.  Each looks at what there is, and writes with the version that it has looked at;
whoever comes second looks again and finds it done (`settled`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from cdi.api.errors import AlreadyExists, Conflict, NotFound
from cdi.api.names import COMMON_LABELS, GROUP
from cdi.kube.client import Client
from cdi.kube.resources import Object, Resource

ANN_MANAGED = f"{GROUP}/managedCertificate"
"""On what is written here; what lacks it is somebody else's."""
_TRIES = 6
T = TypeVar("T")


async def settled(step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step for which somebody else was quicker.  Raises `Conflict` where somebody always is."""
    for _ in range(_TRIES - 1):
        try:
            return await step()
        except (Conflict, AlreadyExists, NotFound):
            continue
    return await step()


async def look(client: Client, resource: Resource, namespace: str, name: str) -> Object | None:
    """None where there is none."""
    try:
        return await client.get(resource, namespace, name)
    except NotFound:
        return None


async def put(client: Client, resource: Resource, before: Object | None, body: Object) -> None:
    """Create it, or replace exactly what was read: raises `AlreadyExists`, `Conflict` or `NotFound` for anything else.

    Labels, annotations and owners that others have given it stay.
    """
    if before is None:
        await client.create(resource, body)
        return
    metadata = before["metadata"]
    owners = body["metadata"].get("ownerReferences") or metadata.get("ownerReferences")
    merged = {
        **{key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "labels": {**(metadata.get("labels") or {}), **body["metadata"]["labels"]},
        "annotations": {**(metadata.get("annotations") or {}), **body["metadata"]["annotations"]},
        **({"ownerReferences": owners} if owners else {}),
    }
    # The type of a Secret cannot be changed.
    kind = {"type": before["type"]} if before.get("type") else {}
    await client.update(resource, body | {"metadata": merged} | kind)


def manifest(
    kind: str, namespace: str, name: str, *, labels: Mapping[str, str] | None = None, owner: Object | None = None
) -> Object:
    """The beginning of a Secret or ConfigMap that is ours."""
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**COMMON_LABELS, **(labels or {})},
            "annotations": {ANN_MANAGED: "true"},
            **({"ownerReferences": [owner]} if owner is not None else {}),
        },
    }


def encoded(fields: Mapping[str, bytes]) -> dict[str, str]:
    """As a Secret's ``data``."""
    return {name: base64.b64encode(content).decode() for name, content in fields.items()}


def field(secret: Object | None, name: str) -> bytes:
    """One value of a Secret; empty where there is none, or none that can be read."""
    data: dict[str, Any] = (secret or {}).get("data") or {}
    try:
        return base64.b64decode(data.get(name) or "", validate=True)
    except (binascii.Error, ValueError):
        return b""


def is_ours(body: Object | None) -> bool:
    """It was written here, or by a replica."""
    annotations = ((body or {}).get("metadata") or {}).get("annotations") or {}
    return annotations.get(ANN_MANAGED) == "true"
