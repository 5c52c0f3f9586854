"""Event handlers: from a changed object to the keys to reconcile."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.names import ANN_POD_PHASE, ANN_SOURCE, ANN_UPLOAD_TARGET, GROUP
from cdi.controller import cloning, transfers
from cdi.controller.keys import CONFIG, Key, volume
from cdi.controller.waiting import FINAL
from cdi.controller.watches import Watches
from cdi.kube.reflector import Change
from cdi.kube.resources import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    CSI_DRIVERS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    EVENTS,
    NODES,
    OBJECT_TRANSFERS,
    PODS,
    SERVICES,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_CLONE_SOURCES,
    VOLUME_IMPORT_SOURCES,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    VOLUME_UPLOAD_SOURCES,
    VOLUMES,
    Object,
    Resource,
)

_DEPTH = 3
"""A pod belongs to a prime PVC, which belongs to its target."""


def affected(resource: Resource, change: Change, watches: Watches) -> set[Key]:
    """Return the keys that depend on a changed object."""
    return set(_affected(resource, change, watches))


def _affected(resource: Resource, change: Change, watches: Watches) -> Iterator[Key]:
    body = change.object
    namespace, name = body["metadata"].get("namespace") or "", body["metadata"]["name"]
    if resource == DATA_VOLUMES:
        yield volume(namespace, name)
        yield from transfers.concerned(watches, (namespace, name))
        yield from _referring(change, watches)
        yield from cloning.of_data_volume(change, watches)
        if _face(change.old) != _face(change.new):
            yield from watches.waiting.on(namespace, name)
    elif resource == CLAIMS:
        yield from _owning(body, watches)
        yield from transfers.concerned(watches, (namespace, name))
        yield from cloning.of_claim(change, watches)
        yield from _referring(change, watches)
    elif resource in (PODS, SERVICES, VOLUME_IMPORT_SOURCES, VOLUME_UPLOAD_SOURCES, VOLUME_CLONE_SOURCES):
        yield from owners_of(body, watches)
        if resource == PODS:
            yield from cloning.reader(body, watches)
            yield from transfers.of_pod(body, watches)
        elif resource != SERVICES:
            yield from _naming(resource, namespace, name, watches)
    elif resource == VOLUME_SNAPSHOTS:
        yield from cloning.of_snapshot(namespace, name, watches)
        yield from sources(watches)
    elif resource == VOLUME_SNAPSHOT_CONTENTS:
        ref = (body.get("spec") or {}).get("volumeSnapshotRef") or {}
        yield from cloning.of_snapshot(ref.get("namespace") or "", ref.get("name") or "", watches)
    elif resource == EVENTS:
        if change.type == "ADDED":
            about = body["involvedObject"]
            yield from _claim_named(about.get("namespace") or "", about.get("name") or "", watches)
    elif resource == VOLUMES:
        for state in (change.old, change.new):
            ref = ((state or {}).get("spec") or {}).get("claimRef") or {}
            yield from _claim_named(ref.get("namespace") or "", ref.get("name") or "", watches)
        yield from transfers.of_volume(change, watches)
        if _volume_face(change.old) != _volume_face(change.new) and (of_class := body["spec"].get("storageClassName")):
            yield Key(kind="profile", name=of_class)
    elif resource == NODES:
        if _ready(change.old) != _ready(change.new):
            for pod in watches.values(PODS):
                if (pod.get("spec") or {}).get("nodeName") == name:
                    yield from owners_of(pod, watches)
    elif resource == DATA_SOURCES:
        yield Key(kind="source", namespace=namespace, name=name)
        yield from sources(watches)
        yield from unfinished(watches)
    elif resource == DATA_IMPORT_CRONS:
        yield Key(kind="cron", namespace=namespace, name=name)
    elif resource == OBJECT_TRANSFERS:
        yield from transfers.of_transfer(change, watches)
    elif resource in (STORAGE_CLASSES, STORAGE_PROFILES):
        yield Key(kind="profile", name=name)
        yield CONFIG
        yield from unfinished(watches)
    elif resource == VOLUME_SNAPSHOT_CLASSES:
        yield from (Key(kind="profile", name=one["metadata"]["name"]) for one in watches.values(STORAGE_CLASSES))
        yield from unfinished(watches)
    elif resource in (CDIS, CDI_CONFIGS):
        yield CONFIG
        yield from (Key(kind="installation", name=one["metadata"]["name"]) for one in watches.values(CDIS))
        yield from unfinished(watches)
    elif resource == CSI_DRIVERS:
        yield from unfinished(watches)


def everything(watches: Watches) -> set[Key]:
    """Return the keys that are reconciled once at startup."""
    found = {CONFIG}
    for body in watches.values(DATA_VOLUMES):
        found.add(volume(body["metadata"]["namespace"], body["metadata"]["name"]))
    for body in watches.values(CLAIMS):
        found.update(_owning(body, watches))
        found.update(cloning.stood_in_for(body))
    for body in watches.values(VOLUME_SNAPSHOTS):
        found.update(cloning.temporary(body))
    for body in watches.values(PODS):
        found.update(cloning.reader(body, watches))
    found.update(sources(watches))
    found.update(transfers.every(watches))
    for body in watches.values(DATA_IMPORT_CRONS):
        found.add(Key(kind="cron", namespace=body["metadata"]["namespace"], name=body["metadata"]["name"]))
    for resource in (STORAGE_CLASSES, STORAGE_PROFILES):
        found.update(Key(kind="profile", name=body["metadata"]["name"]) for body in watches.values(resource))
    found.update(Key(kind="installation", name=body["metadata"]["name"]) for body in watches.values(CDIS))
    return found


def unfinished(watches: Watches) -> Iterator[Key]:
    """Yield the volumes that are not in a final phase."""
    for body in watches.values(DATA_VOLUMES):
        if (body.get("status") or {}).get("phase") not in FINAL:
            yield volume(body["metadata"]["namespace"], body["metadata"]["name"])
    for body in watches.values(CLAIMS):
        annotations = body["metadata"].get("annotations") or {}
        ref = (body.get("spec") or {}).get("dataSourceRef") or {}
        ours = ANN_SOURCE in annotations or ANN_UPLOAD_TARGET in annotations or ref.get("apiGroup") == GROUP
        if ours and annotations.get(ANN_POD_PHASE) != "Succeeded":
            yield from _owning(body, watches)


def sources(watches: Watches) -> Iterator[Key]:
    """Yield the key of every DataSource."""
    for body in watches.values(DATA_SOURCES):
        yield Key(kind="source", namespace=body["metadata"]["namespace"], name=body["metadata"]["name"])


# --- owners and references --------------------------------------------------------------------------------------


def _owning(claim: Object, watches: Watches, depth: int = 0) -> Iterator[Key]:
    """Yield the key of a PVC and those of the PVCs that it is filled for."""
    yield volume(claim["metadata"]["namespace"], claim["metadata"]["name"])
    yield from cloning.stood_in_for(claim)
    if depth < _DEPTH:
        yield from owners_of(claim, watches, depth + 1)


def owners_of(body: Object, watches: Watches, depth: int = 0) -> Iterator[Key]:
    """Yield the volume that a pod, PVC or volume source exists for, and the PVCs in between, by owner references."""
    namespace = body["metadata"].get("namespace") or ""
    for owner in body["metadata"].get("ownerReferences") or ():
        name = owner.get("name") or ""
        if owner.get("kind") == DATA_VOLUMES.kind:
            yield volume(namespace, name)
        elif owner.get("kind") == CLAIMS.kind:
            yield from _claim_named(namespace, name, watches, depth)


def _claim_named(namespace: str, name: str, watches: Watches, depth: int = 0) -> Iterator[Key]:
    if not namespace or not name:
        return
    claim = watches.get(CLAIMS, namespace, name)
    if claim is None:
        yield volume(namespace, name)
    else:
        yield from _owning(claim, watches, depth)


def _naming(resource: Resource, namespace: str, name: str, watches: Watches) -> Iterator[Key]:
    """Yield the PVCs that refer to a populator's volume source."""
    for claim in watches.values(CLAIMS):
        ref = (claim.get("spec") or {}).get("dataSourceRef") or {}
        if ref.get("name") == name and ref.get("kind") == resource.kind:
            space = claim["metadata"]["namespace"]
            if (ref.get("namespace") or space) == namespace:
                yield from _owning(claim, watches)


def _referring(change: Change, watches: Watches) -> Iterator[Key]:
    """Yield all DataSources if a volume changed: they show its readiness and pass on some of its labels."""
    if _face(change.old) != _face(change.new):
        yield from sources(watches)


# --- fields that other objects depend on ------------------------------------------------------------------------


def _face(body: Object | None) -> object:
    """Return the fields that other objects depend on; progress is not among them."""
    if body is None:
        return None
    metadata = body["metadata"]
    phase = (body.get("status") or {}).get("phase")
    return metadata["uid"], phase, "deletionTimestamp" in metadata, metadata.get("labels")


def _volume_face(body: Object | None) -> object:
    if body is None:
        return None
    return body["spec"].get("accessModes"), body["spec"].get("volumeMode"), (body.get("status") or {}).get("phase")


def _ready(body: Object | None) -> object:
    conditions = ((body or {}).get("status") or {}).get("conditions") or []
    return [one.get("status") for one in conditions]
