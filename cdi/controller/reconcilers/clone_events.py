"""Event handlers of clones: from a changed object to the requests that depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import CLONE_PLAN, CLONE_SOURCE_UID, CLONE_TARGET, OWNER_UID, SOURCE_DISK_SIZE, TICKETS
from cdi.api.kinds import CLAIMS, PODS, VOLUME_SNAPSHOTS, Object
from cdi.api.names import ANN_POD_PHASE, clone_source_pod, temporary_claim
from cdi.api.storageprofile import CloneStrategy
from cdi.controller.clone_lister import is_size_detection_pod, snapshot_source
from cdi.controller.informers import InformerSet
from cdi.controller.request import Request, datavolume
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.clone.host_assisted import MAX_SOURCE_PODS
from cdi.reconcile.clone.plan_annotation import LABEL_TEMPORARY, ClonePlanRecord

# --- volumes ----------------------------------------------------------------------------------------------------


def volumes_recording_pvc(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the volumes that depend on a changed PVC by the plan of a clone.

    - of a temporary PVC: the clones that record it;
    - of a target: the temporary PVCs that it uses or has just stopped using.
    """
    body = change.object
    if is_temporary(body) and CLONE_SOURCE_UID.read(annotations_of(body)):
        yield from _clones_recording("restored", body["metadata"]["namespace"], body["metadata"]["name"], caches)
    for record, target in _records(change):
        if record.restored:
            yield datavolume(record.namespace, record.restored)
        if record.namespace != target["metadata"]["namespace"]:
            yield datavolume(record.namespace, temporary_claim(target["metadata"]["uid"]))


def volumes_of_snapshot(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the clones that are created from a snapshot or record it."""
    yield from _volumes_of_snapshot(*_place(change), caches)


def volumes_of_snapshot_content(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the clones that are created from the snapshot of a VolumeSnapshotContent or record it."""
    yield from _volumes_of_snapshot(*snapshot_of_content(change.object), caches)


def volumes_of_source_pod(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the clones that a source or size-detection pod serves, served or may serve."""
    yield from volumes_served_by(change.object, caches)


def volumes_served_by(pod: Object, caches: InformerSet) -> Iterator[Request]:
    """Yield the clones that a source or size-detection pod serves, served or may serve."""
    if not is_temporary(pod):
        return
    yield from target_of_temporary(pod)
    source = CLONE_SOURCE_UID.read(annotations_of(pod))
    if source and not is_size_detection_pod(pod):
        for claim in caches.values(CLAIMS):
            record = CLONE_PLAN.read(ClonePlanRecord, annotations_of(claim))
            if record is not None and (record.source, record.strategy) == (source, CloneStrategy.COPY):
                yield datavolume(claim["metadata"]["namespace"], claim["metadata"]["name"])


def target_of_temporary(body: Object) -> Iterator[Request]:
    """Yield the target of a temporary object, which is named in an annotation because it cannot be its owner."""
    target = CLONE_TARGET.read(annotations_of(body))
    if target is not None and is_temporary(body):
        yield datavolume(*target)


def _volumes_of_snapshot(namespace: str, name: str, caches: InformerSet) -> Iterator[Request]:
    body = caches.get(VOLUME_SNAPSHOTS, namespace, name)
    if body is None or not is_temporary(body):
        yield from caches.waiting.clones_of(namespace, name, snapshot=True)
    yield from _clones_recording("snapshot", namespace, name, caches)


def _clones_recording(
    part: Literal["snapshot", "restored"], namespace: str, name: str, caches: InformerSet
) -> Iterator[Request]:
    """Yield the clones whose plan annotation names this temporary snapshot or PVC."""
    for claim in caches.values(CLAIMS):
        record = CLONE_PLAN.read(ClonePlanRecord, annotations_of(claim))
        if record is not None and (record.namespace, getattr(record, part)) == (namespace, name):
            yield datavolume(claim["metadata"]["namespace"], claim["metadata"]["name"])


# --- temporary snapshots ----------------------------------------------------------------------------------------


def snapshot(namespace: str, name: str) -> Request:
    """Return the request of a snapshot."""
    return Request(kind="snapshot", namespace=namespace, name=name)


def snapshots_of_pvc(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    """Yield the snapshots that a changed PVC is provisioned from, uses or has just stopped using."""
    body = change.object
    if name := snapshot_source(body):
        yield snapshot(body["metadata"]["namespace"], name)
    for record, _ in _records(change):
        if record.snapshot:
            yield snapshot(record.namespace, record.snapshot)


def snapshot_itself(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    yield snapshot(*_place(change))


def snapshot_of_changed_content(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    yield snapshot(*snapshot_of_content(change.object))


def snapshot_of_content(content: Object) -> tuple[str, str]:
    """Return namespace and name of the snapshot to which a VolumeSnapshotContent belongs."""
    ref = (content.get("spec") or {}).get("volumeSnapshotRef") or {}
    return ref.get("namespace") or "", ref.get("name") or ""


# --- source and size-detection pods -----------------------------------------------------------------------------


def reader(body: Object) -> Request:
    """Return the request of a source or size-detection pod."""
    return Request(kind="reader", namespace=body["metadata"]["namespace"], name=body["metadata"]["name"])


def reader_itself(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    if is_temporary(change.object):
        yield reader(change.object)


def readers_of_pvc(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the source pods that have a ticket of a changed target."""
    for record, target in _records(change):
        if record.strategy is CloneStrategy.COPY:
            yield from _readers_with_ticket(record, target["metadata"]["uid"], caches)


def readers_of_data_volume(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the size-detection pods of a DataVolume once the size is recorded or the DataVolume is being deleted."""
    recorded = annotations_of(change.new).get(SOURCE_DISK_SIZE.key)
    if recorded == annotations_of(change.old).get(SOURCE_DISK_SIZE.key) and not _is_terminating(change.new):
        return
    for pod in caches.values(PODS):
        if is_size_detection_pod(pod) and OWNER_UID.read(annotations_of(pod)) == change.object["metadata"]["uid"]:
            yield reader(pod)


def _readers_with_ticket(record: ClonePlanRecord, target: str, caches: InformerSet) -> Iterator[Request]:
    for archive in (False, True):
        for number in range(MAX_SOURCE_PODS):
            name = clone_source_pod(record.source, number, archive=archive)
            pod = caches.get(PODS, record.namespace, name)
            if pod is not None and target in TICKETS.read(annotations_of(pod)):
                yield reader(pod)


# --- facts ------------------------------------------------------------------------------------------------------


def is_temporary(body: Object) -> bool:
    """Return whether an object has the label of temporary objects."""
    return (body["metadata"].get("labels") or {}).get(LABEL_TEMPORARY) == "true"


def source_facts(body: Object | None) -> object:
    """Return the fields of a source that its clones depend on."""
    if body is None:
        return None
    metadata = body["metadata"]
    phase = (body.get("status") or {}).get("phase")
    return metadata["uid"], phase, "deletionTimestamp" in metadata, annotations_of(body).get(ANN_POD_PHASE)


def _records(change: WatchEvent) -> Iterator[tuple[ClonePlanRecord, Object]]:
    """Yield the plans of a clone before and after a change, each with its target."""
    for state in (change.old, change.new):
        if state is not None:
            record = CLONE_PLAN.read(ClonePlanRecord, annotations_of(state))
            if record is not None:
                yield record, state


def _place(change: WatchEvent) -> tuple[str, str]:
    metadata = change.object["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def _is_terminating(body: Object | None) -> bool:
    return body is None or "deletionTimestamp" in body["metadata"]
