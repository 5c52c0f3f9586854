"""Secrets and ConfigMaps that hold generated state, shared by all replicas of a program.

Several replicas may write concurrently. Each reads the current object and writes with the version that it read; the one
that loses rereads and finds the work done (`retry_on_conflict`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import MANAGED_CERTIFICATE
from cdi.api.errors import AlreadyExists, Conflict, NotFound
from cdi.api.kinds import Object, Resource
from cdi.api.names import COMMON_LABELS
from cdi.kube.client import Client

_TRIES = 6
T = TypeVar("T")


async def retry_on_conflict(step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step that lost against a concurrent write; raise `Conflict` if every attempt loses."""
    for _ in range(_TRIES - 1):
        try:
            return await step()
        except (Conflict, AlreadyExists, NotFound):
            continue
    return await step()


async def get_or_none(client: Client, resource: Resource, namespace: str, name: str) -> Object | None:
    """Return the object, or None if it does not exist."""
    try:
        return await client.get(resource, namespace, name)
    except NotFound:
        return None


async def create_or_update(client: Client, resource: Resource, before: Object | None, body: Object) -> None:
    """Create the object, or replace exactly the version that was read.

    Labels, annotations and owners that other writers added are kept.

    Raises:
        AlreadyExists, Conflict, NotFound: the object is no longer what was read.
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
    # The type of a Secret is immutable.
    kind = {"type": before["type"]} if before.get("type") else {}
    await client.update(resource, body | {"metadata": merged} | kind)


def manifest(
    kind: str, namespace: str, name: str, *, labels: Mapping[str, str] | None = None, owner: Object | None = None
) -> Object:
    """Return the skeleton of a managed Secret or ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**COMMON_LABELS, **(labels or {})},
            "annotations": MANAGED_CERTIFICATE.write(),
            **({"ownerReferences": [owner]} if owner is not None else {}),
        },
    }


def encoded(fields: Mapping[str, bytes]) -> dict[str, str]:
    """Return `fields` as the ``data`` of a Secret."""
    return {name: base64.b64encode(content).decode() for name, content in fields.items()}


def field(secret: Object | None, name: str) -> bytes:
    """Return one value of a Secret; empty if it is missing or cannot be decoded."""
    data: dict[str, Any] = (secret or {}).get("data") or {}
    try:
        return base64.b64decode(data.get(name) or "", validate=True)
    except (binascii.Error, ValueError):
        return b""


def is_managed(body: Object | None) -> bool:
    """Return whether this program or a replica wrote the object."""
    annotations = annotations_of(body)
    return MANAGED_CERTIFICATE.read(annotations)
