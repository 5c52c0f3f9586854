"""Event handlers of clones: from a changed object to the keys to reconcile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from cdi.api.copy import TICKET_PREFIX
from cdi.api.kinds import CLAIMS, PODS, VOLUME_SNAPSHOTS, Object
from cdi.api.names import ANN_OWNER_UID, ANN_POD_PHASE, LABEL_COMPONENT, clone_source_pod, temporary_claim
from cdi.api.storageprofile import CloneStrategy
from cdi.controller.lister import data_ref
from cdi.controller.request import Request, datavolume
from cdi.reconcile.clone.host_assisted import MAX_SOURCE_PODS
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ANN_TARGET, ANNOTATION, LABEL_TEMPORARY, ClonePlanRecord
from cdi.reconcile.clone.size_detection import ANNOTATION as MEASURED
from cdi.reconcile.pods.roles import SIZE_DETECTION

if TYPE_CHECKING:
    from cdi.controller.informers import InformerSet
    from cdi.kube.reflector import WatchEvent


def requests_for_pvc(change: WatchEvent, watches: InformerSet) -> Iterator[Request]:
    """Yield the keys that depend on a changed PVC.

    - of a clone source: its clones;
    - of a temporary PVC: the target that it was created for, and the clones that record it;
    - of a target: the snapshots and temporary objects that it uses or has just stopped using, and its source pods.
    """
    body = change.object
    yield from target_of_temporary_pvc(body)
    snapshot = snapshot_source(body)
    if snapshot:
        yield Request(kind="snapshot", namespace=body["metadata"]["namespace"], name=snapshot)
    if _is_temporary(body) and ANN_SOURCE_UID in _annotations(body):
        yield from _made_with("restored", body["metadata"]["namespace"], body["metadata"]["name"], watches)
    for state in (change.old, change.new):
        record = ClonePlanRecord.parse(_annotations(state).get(ANNOTATION))
        if record is None or state is None:
            continue
        if record.snapshot:
            yield Request(kind="snapshot", namespace=record.namespace, name=record.snapshot)
        if record.restored:
            yield datavolume(record.namespace, record.restored)
        yield from _readers_of(record, state["metadata"]["uid"], watches)
        if record.namespace != state["metadata"]["namespace"]:
            yield datavolume(record.namespace, temporary_claim(state["metadata"]["uid"]))
    if _relevant_fields(change.old) != _relevant_fields(change.new):
        yield from watches.waiting.clones_of(body["metadata"]["namespace"], body["metadata"]["name"])


def requests_for_snapshot(namespace: str, name: str, watches: InformerSet) -> Iterator[Request]:
    """Yield the key of a snapshot and those of the clones that are created from it or record it."""
    body = watches.get(VOLUME_SNAPSHOTS, namespace, name)
    yield Request(kind="snapshot", namespace=namespace, name=name)
    if body is None or not _is_temporary(body):
        yield from watches.waiting.clones_of(namespace, name, snapshot=True)
    yield from _made_with("snapshot", namespace, name, watches)


def _made_with(
    part: Literal["snapshot", "restored"], namespace: str, name: str, watches: InformerSet
) -> Iterator[Request]:
    """Yield the clones whose plan annotation names this temporary snapshot or PVC."""
    for claim in watches.values(CLAIMS):
        record = ClonePlanRecord.parse(_annotations(claim).get(ANNOTATION))
        if record is not None and (record.namespace, getattr(record, part)) == (namespace, name):
            yield datavolume(claim["metadata"]["namespace"], claim["metadata"]["name"])


def requests_for_data_volume(change: WatchEvent, watches: InformerSet) -> Iterator[Request]:
    """Yield the size-detection pods of a DataVolume once the size is recorded or the DataVolume is being deleted."""
    noted = _annotations(change.new).get(MEASURED)
    if noted == _annotations(change.old).get(MEASURED) and not _is_terminating(change.new):
        return
    for pod in watches.values(PODS):
        if is_size_detection_pod(pod) and _annotations(pod).get(ANN_OWNER_UID) == change.object["metadata"]["uid"]:
            yield Request(kind="reader", namespace=pod["metadata"]["namespace"], name=pod["metadata"]["name"])


def is_size_detection_pod(pod: Object) -> bool:
    """Return whether a pod is a size-detection pod."""
    return (pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT) == SIZE_DETECTION.component


def requests_for_source_pod(pod: Object, watches: InformerSet) -> Iterator[Request]:
    """Yield the key of a source or size-detection pod and those of the clones that it serves, served or may serve."""
    if not _is_temporary(pod):
        return
    yield Request(kind="reader", namespace=pod["metadata"]["namespace"], name=pod["metadata"]["name"])
    yield from target_of_temporary_pvc(pod)
    source = _annotations(pod).get(ANN_SOURCE_UID)
    if source and not is_size_detection_pod(pod):
        for claim in watches.values(CLAIMS):
            record = ClonePlanRecord.parse(_annotations(claim).get(ANNOTATION))
            if record is not None and (record.source, record.strategy) == (source, CloneStrategy.COPY):
                yield datavolume(claim["metadata"]["namespace"], claim["metadata"]["name"])


def _readers_of(record: ClonePlanRecord, target: str, watches: InformerSet) -> Iterator[Request]:
    """Yield the source pods that have a ticket of this target."""
    if record.strategy is not CloneStrategy.COPY:
        return
    for archive in (False, True):
        for number in range(MAX_SOURCE_PODS):
            name = clone_source_pod(record.source, number, archive=archive)
            pod = watches.get(PODS, record.namespace, name)
            if pod is not None and f"{TICKET_PREFIX}{target}" in _annotations(pod):
                yield Request(kind="reader", namespace=record.namespace, name=name)


def target_of_temporary_pvc(body: Object) -> Iterator[Request]:
    """Yield the target of a temporary object, which is named in an annotation because it cannot be its owner."""
    place = _annotations(body).get(ANN_TARGET)
    if place and _is_temporary(body):
        namespace, _, name = place.partition("/")
        yield datavolume(namespace, name)


def snapshot_source(claim: Object) -> str:
    """Return the name of the VolumeSnapshot from which the storage provisions a PVC; empty if there is none."""
    ref = data_ref(claim.get("spec") or {})
    return ref.name if ref is not None and ref.kind == VOLUME_SNAPSHOTS.kind else ""


def requests_for_temporary(snapshot: Object) -> Iterator[Request]:
    """Yield the key of a temporary snapshot, which is deleted when no clone needs it any more."""
    if _is_temporary(snapshot):
        yield Request(kind="snapshot", namespace=snapshot["metadata"]["namespace"], name=snapshot["metadata"]["name"])


def _is_temporary(body: Object) -> bool:
    return (body["metadata"].get("labels") or {}).get(LABEL_TEMPORARY) == "true"


def _is_terminating(body: Object | None) -> bool:
    return body is None or "deletionTimestamp" in body["metadata"]


def _annotations(body: Object | None) -> Mapping[str, str]:
    annotations: Mapping[str, str] = ((body or {}).get("metadata") or {}).get("annotations") or {}
    return annotations


def _relevant_fields(body: Object | None) -> object:
    """Return the fields of a source that its clones depend on."""
    if body is None:
        return None
    metadata = body["metadata"]
    phase = (body.get("status") or {}).get("phase")
    return metadata["uid"], phase, "deletionTimestamp" in metadata, _annotations(body).get(ANN_POD_PHASE)
