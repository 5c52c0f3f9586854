"""Size of a clone whose PVC requests none, from its source, as far as that is known when the PVC is created."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Protocol

from cdi.api.annotation_types import annotations_of
from cdi.api.errors import InvalidManifest
from cdi.api.names import ANN_DATA_SOURCE_NAMESPACE, ANN_SNAPSHOT_SOURCE_VOLUME_MODE, GROUP
from cdi.api.populators import VolumeCloneSource
from cdi.api.quantity import Quantity
from cdi.reconcile.clone.source import clone_size
from cdi.reconcile.clone.types import CloneSource

Object = Mapping[str, Any]


class CloneSources(Protocol):
    """Objects that clones are made of; methods raise a `CdiError` if the API server cannot be reached."""

    async def clone_source(self, namespace: str, name: str) -> VolumeCloneSource | None: ...

    async def claim(self, namespace: str, name: str) -> dict[str, Any] | None: ...

    async def snapshot(self, namespace: str, name: str) -> dict[str, Any] | None: ...


def clone_source_name(spec: Object) -> str:
    """Return the name of the VolumeCloneSource that fills a PVC; empty if something else does."""
    reference = spec.get("dataSourceRef") or spec.get("dataSource") or {}
    named = reference.get("apiGroup") == GROUP and reference.get("kind") == "VolumeCloneSource"
    return str(reference.get("name") or "") if named else ""


def requested_size(spec: Object) -> int:
    """Return the requested size in bytes, or 0; raise `InvalidManifest` if it is not a quantity."""
    return _bytes((spec.get("resources") or {}).get("requests"))


async def source_size(
    claim: Object, namespace: str, volume_mode: str, overhead: Fraction, sources: CloneSources
) -> int | None:
    """Return the size in bytes for a PVC that is filled by a VolumeCloneSource.

    A PVC that is cloned from another namespace gets none: nothing has checked that its creator may know that source.

    Args:
        claim: The PVC.
        namespace: The namespace of the PVC.
        volume_mode: The volume mode of the PVC.
        overhead: The file system overhead of its storage class.
        sources: The cluster; its errors are raised.

    Returns:
        None if a part of the source does not exist yet or its size is not known.
    """
    elsewhere = annotations_of(claim).get(ANN_DATA_SOURCE_NAMESPACE)
    if elsewhere not in (None, "", namespace):
        return None
    populator = await sources.clone_source(namespace, clone_source_name(claim["spec"]))
    if populator is None:
        return None
    source = populator.spec.source
    try:
        if source.kind == "VolumeSnapshot":
            body = await sources.snapshot(namespace, source.name)
            found = _snapshot(body) if body is not None else None
        else:
            body = await sources.claim(namespace, source.name)
            found = _claim(body) if body is not None else None
    except InvalidManifest:
        return None  # an unusable name or size; the controller reports it
    return clone_size(found, volume_mode, overhead) if found is not None else None


def _claim(body: Object) -> CloneSource:
    metadata, spec = body["metadata"], body.get("spec") or {}
    requested, capacity = requested_size(spec), _bytes((body.get("status") or {}).get("capacity"))
    known = [size for size in (requested, capacity) if size]
    return CloneSource(
        kind="PersistentVolumeClaim",
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        volume_mode=spec.get("volumeMode") or "Filesystem",
        storage_class=spec.get("storageClassName"),
        driver="",
        size=capacity or requested or None,
        asked=min(known) if known else None,
        labels={},
        annotations={},
    )


def _snapshot(body: Object) -> CloneSource:
    metadata, status = body["metadata"], body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    size = _bytes({"storage": status.get("restoreSize")}) or None
    return CloneSource(
        kind="VolumeSnapshot",
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        volume_mode=annotations.get(ANN_SNAPSHOT_SOURCE_VOLUME_MODE) or "",
        storage_class=None,
        driver="",
        size=size,
        asked=size,
        labels={},
        annotations=annotations,
    )


def _bytes(amounts: Object | None) -> int:
    text = (amounts or {}).get("storage")
    return Quantity.parse(text).bytes if text is not None else 0
