"""Event handlers: from a changed object to the keys to reconcile."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    CSI_DRIVERS,
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
from cdi.api.names import ANN_POD_PHASE, ANN_SOURCE, ANN_UPLOAD_TARGET, GROUP
from cdi.controller import clone_handlers, cron_handlers, transfer_lister
from cdi.controller.clone_index import TERMINAL_PHASES
from cdi.controller.informers import InformerSet
from cdi.controller.request import CONFIG, Request, datavolume
from cdi.kube.reflector import WatchEvent

_DEPTH = 3
"""A pod belongs to a prime PVC, which belongs to its target."""


def requests_for(resource: Resource, change: WatchEvent, watches: InformerSet) -> set[Request]:
    """Return the keys that depend on a changed object."""
    return set(_affected(resource, change, watches))


def _affected(resource: Resource, change: WatchEvent, watches: InformerSet) -> Iterator[Request]:
    body = change.object
    namespace, name = body["metadata"].get("namespace") or "", body["metadata"]["name"]
    yield from cron_handlers.requests_for(resource, change, watches)
    if resource == DATA_VOLUMES:
        yield datavolume(namespace, name)
        yield from transfer_lister.requests_touching(watches, (namespace, name))
        yield from _referring(change, watches)
        yield from clone_handlers.requests_for_data_volume(change, watches)
        if _relevant_fields(change.old) != _relevant_fields(change.new):
            yield from watches.waiting.clones_of(namespace, name)
    elif resource == CLAIMS:
        yield from _owning(body, watches)
        yield from transfer_lister.requests_touching(watches, (namespace, name))
        yield from clone_handlers.requests_for_pvc(change, watches)
        yield from _referring(change, watches)
    elif resource in (PODS, SERVICES, VOLUME_IMPORT_SOURCES, VOLUME_UPLOAD_SOURCES, VOLUME_CLONE_SOURCES):
        yield from owners_of(body, watches)
        if resource == PODS:
            yield from clone_handlers.requests_for_source_pod(body, watches)
            yield from transfer_lister.requests_for_pod(body, watches)
        elif resource != SERVICES:
            yield from _pvcs_referencing(resource, namespace, name, watches)
    elif resource == VOLUME_SNAPSHOTS:
        yield from clone_handlers.requests_for_snapshot(namespace, name, watches)
        yield from sources(watches)
    elif resource == VOLUME_SNAPSHOT_CONTENTS:
        ref = (body.get("spec") or {}).get("volumeSnapshotRef") or {}
        yield from clone_handlers.requests_for_snapshot(ref.get("namespace") or "", ref.get("name") or "", watches)
    elif resource == EVENTS:
        if change.type == "ADDED":
            involved_object = body["involvedObject"]
            yield from _claim_named(involved_object.get("namespace") or "", involved_object.get("name") or "", watches)
    elif resource == VOLUMES:
        for state in (change.old, change.new):
            ref = ((state or {}).get("spec") or {}).get("claimRef") or {}
            yield from _claim_named(ref.get("namespace") or "", ref.get("name") or "", watches)
        yield from transfer_lister.requests_for_volume(change, watches)
        if _volume_face(change.old) != _volume_face(change.new) and (of_class := body["spec"].get("storageClassName")):
            yield Request(kind="profile", name=of_class)
    elif resource == NODES:
        if _ready(change.old) != _ready(change.new):
            for pod in watches.values(PODS):
                if (pod.get("spec") or {}).get("nodeName") == name:
                    yield from owners_of(pod, watches)
    elif resource == DATA_SOURCES:
        yield Request(kind="source", namespace=namespace, name=name)
        yield from sources(watches)
        yield from unfinished_requests(watches)
    elif resource == OBJECT_TRANSFERS:
        yield from transfer_lister.requests_for_transfer(change, watches)
    elif resource in (STORAGE_CLASSES, STORAGE_PROFILES):
        yield Request(kind="profile", name=name)
        yield CONFIG
        yield from unfinished_requests(watches)
    elif resource == VOLUME_SNAPSHOT_CLASSES:
        yield from (Request(kind="profile", name=one["metadata"]["name"]) for one in watches.values(STORAGE_CLASSES))
        yield from unfinished_requests(watches)
    elif resource in (CDIS, CDI_CONFIGS):
        yield CONFIG
        yield from (Request(kind="installation", name=one["metadata"]["name"]) for one in watches.values(CDIS))
        yield from unfinished_requests(watches)
    elif resource == CSI_DRIVERS:
        yield from unfinished_requests(watches)


def initial_requests(watches: InformerSet) -> set[Request]:
    """Return the keys that are reconciled once at startup."""
    found = {CONFIG}
    for body in watches.values(DATA_VOLUMES):
        found.add(datavolume(body["metadata"]["namespace"], body["metadata"]["name"]))
    for body in watches.values(CLAIMS):
        found.update(_owning(body, watches))
        found.update(clone_handlers.target_of_temporary_pvc(body))
    for body in watches.values(VOLUME_SNAPSHOTS):
        found.update(clone_handlers.requests_for_temporary(body))
    for body in watches.values(PODS):
        found.update(clone_handlers.requests_for_source_pod(body, watches))
    found.update(sources(watches))
    found.update(transfer_lister.all_requests(watches))
    found.update(cron_handlers.all_requests(watches))
    for resource in (STORAGE_CLASSES, STORAGE_PROFILES):
        found.update(Request(kind="profile", name=body["metadata"]["name"]) for body in watches.values(resource))
    found.update(Request(kind="installation", name=body["metadata"]["name"]) for body in watches.values(CDIS))
    return found


def unfinished_requests(watches: InformerSet) -> Iterator[Request]:
    """Yield the volumes that are not in a final phase."""
    for body in watches.values(DATA_VOLUMES):
        if (body.get("status") or {}).get("phase") not in TERMINAL_PHASES:
            yield datavolume(body["metadata"]["namespace"], body["metadata"]["name"])
    for body in watches.values(CLAIMS):
        annotations = body["metadata"].get("annotations") or {}
        ref = (body.get("spec") or {}).get("dataSourceRef") or {}
        ours = ANN_SOURCE in annotations or ANN_UPLOAD_TARGET in annotations or ref.get("apiGroup") == GROUP
        if ours and annotations.get(ANN_POD_PHASE) != "Succeeded":
            yield from _owning(body, watches)


def sources(watches: InformerSet) -> Iterator[Request]:
    """Yield the key of every DataSource."""
    for body in watches.values(DATA_SOURCES):
        yield Request(kind="source", namespace=body["metadata"]["namespace"], name=body["metadata"]["name"])


# --- owners and references --------------------------------------------------------------------------------------


def _owning(claim: Object, watches: InformerSet, depth: int = 0) -> Iterator[Request]:
    """Yield the key of a PVC and those of the PVCs that it is filled for."""
    yield datavolume(claim["metadata"]["namespace"], claim["metadata"]["name"])
    yield from clone_handlers.target_of_temporary_pvc(claim)
    if depth < _DEPTH:
        yield from owners_of(claim, watches, depth + 1)


def owners_of(body: Object, watches: InformerSet, depth: int = 0) -> Iterator[Request]:
    """Yield the volume that a pod, PVC or volume source exists for, and the PVCs in between, by owner references."""
    namespace = body["metadata"].get("namespace") or ""
    for owner in body["metadata"].get("ownerReferences") or ():
        name = owner.get("name") or ""
        if owner.get("kind") == DATA_VOLUMES.kind:
            yield datavolume(namespace, name)
        elif owner.get("kind") == CLAIMS.kind:
            yield from _claim_named(namespace, name, watches, depth)


def _claim_named(namespace: str, name: str, watches: InformerSet, depth: int = 0) -> Iterator[Request]:
    if not namespace or not name:
        return
    claim = watches.get(CLAIMS, namespace, name)
    if claim is None:
        yield datavolume(namespace, name)
    else:
        yield from _owning(claim, watches, depth)


def _pvcs_referencing(resource: Resource, namespace: str, name: str, watches: InformerSet) -> Iterator[Request]:
    """Yield the PVCs that refer to a populator's volume source."""
    for claim in watches.values(CLAIMS):
        ref = (claim.get("spec") or {}).get("dataSourceRef") or {}
        if ref.get("name") == name and ref.get("kind") == resource.kind:
            space = claim["metadata"]["namespace"]
            if (ref.get("namespace") or space) == namespace:
                yield from _owning(claim, watches)


def _referring(change: WatchEvent, watches: InformerSet) -> Iterator[Request]:
    """Yield all DataSources if a volume changed: they show its readiness and pass on some of its labels."""
    if _relevant_fields(change.old) != _relevant_fields(change.new):
        yield from sources(watches)


# --- fields that other objects depend on ------------------------------------------------------------------------


def _relevant_fields(body: Object | None) -> object:
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
