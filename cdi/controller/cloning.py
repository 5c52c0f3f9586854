"""Event handlers of clones: from a changed object to the keys to reconcile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from cdi.api.copy import TICKET_PREFIX
from cdi.api.names import ANN_OWNER_UID, ANN_POD_PHASE, LABEL_COMPONENT, clone_source_pod, temporary_claim
from cdi.api.storageprofile import CloneStrategy
from cdi.controller.keys import Key, volume
from cdi.controller.observe import data_ref
from cdi.kube.resources import CLAIMS, PODS, VOLUME_SNAPSHOTS, Object
from cdi.reconcile.clone.copying import READERS_MOST
from cdi.reconcile.clone.manifests import MEASUREMENT
from cdi.reconcile.clone.measuring import ANNOTATION as MEASURED
from cdi.reconcile.clone.record import ANN_SOURCE_UID, ANN_TARGET, ANNOTATION, LABEL_TEMPORARY, CloneRecord

if TYPE_CHECKING:
    from cdi.controller.watches import Watches
    from cdi.kube.reflector import Change


def of_claim(change: Change, watches: Watches) -> Iterator[Key]:
    """Yield the keys that depend on a changed PVC.

    - of a clone source: its clones;
    - of a temporary PVC: the target that it was created for, and the clones that record it;
    - of a target: the snapshots and temporary objects that it uses or has just stopped using, and its source pods.
    """
    body = change.object
    yield from stood_in_for(body)
    snapshot = made_of(body)
    if snapshot:
        yield Key(kind="snapshot", namespace=body["metadata"]["namespace"], name=snapshot)
    if _is_temporary(body) and ANN_SOURCE_UID in _annotations(body):
        yield from _made_with("restored", body["metadata"]["namespace"], body["metadata"]["name"], watches)
    for state in (change.old, change.new):
        record = CloneRecord.parse(_annotations(state).get(ANNOTATION))
        if record is None or state is None:
            continue
        if record.snapshot:
            yield Key(kind="snapshot", namespace=record.namespace, name=record.snapshot)
        if record.restored:
            yield volume(record.namespace, record.restored)
        yield from _readers_of(record, state["metadata"]["uid"], watches)
        if record.namespace != state["metadata"]["namespace"]:
            yield volume(record.namespace, temporary_claim(state["metadata"]["uid"]))
    if _face(change.old) != _face(change.new):
        yield from watches.waiting.on(body["metadata"]["namespace"], body["metadata"]["name"])


def of_snapshot(namespace: str, name: str, watches: Watches) -> Iterator[Key]:
    """Yield the key of a snapshot and those of the clones that are created from it or record it."""
    body = watches.get(VOLUME_SNAPSHOTS, namespace, name)
    yield Key(kind="snapshot", namespace=namespace, name=name)
    if body is None or not _is_temporary(body):
        yield from watches.waiting.on(namespace, name, snapshot=True)
    yield from _made_with("snapshot", namespace, name, watches)


def _made_with(part: Literal["snapshot", "restored"], namespace: str, name: str, watches: Watches) -> Iterator[Key]:
    """Yield the clones whose plan annotation names this temporary snapshot or PVC."""
    for claim in watches.values(CLAIMS):
        record = CloneRecord.parse(_annotations(claim).get(ANNOTATION))
        if record is not None and (record.namespace, getattr(record, part)) == (namespace, name):
            yield volume(claim["metadata"]["namespace"], claim["metadata"]["name"])


def of_data_volume(change: Change, watches: Watches) -> Iterator[Key]:
    """Yield the size-detection pods of a DataVolume once the size is recorded or the DataVolume is being deleted."""
    noted = _annotations(change.new).get(MEASURED)
    if noted == _annotations(change.old).get(MEASURED) and not _is_going(change.new):
        return
    for pod in watches.values(PODS):
        if measures(pod) and _annotations(pod).get(ANN_OWNER_UID) == change.object["metadata"]["uid"]:
            yield Key(kind="reader", namespace=pod["metadata"]["namespace"], name=pod["metadata"]["name"])


def measures(pod: Object) -> bool:
    """Return whether a pod is a size-detection pod."""
    return (pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT) == MEASUREMENT


def reader(pod: Object, watches: Watches) -> Iterator[Key]:
    """Yield the key of a source or size-detection pod and those of the clones that it serves, served or may serve."""
    if not _is_temporary(pod):
        return
    yield Key(kind="reader", namespace=pod["metadata"]["namespace"], name=pod["metadata"]["name"])
    yield from stood_in_for(pod)
    source = _annotations(pod).get(ANN_SOURCE_UID)
    if source and not measures(pod):
        for claim in watches.values(CLAIMS):
            record = CloneRecord.parse(_annotations(claim).get(ANNOTATION))
            if record is not None and (record.source, record.strategy) == (source, CloneStrategy.COPY):
                yield volume(claim["metadata"]["namespace"], claim["metadata"]["name"])


def _readers_of(record: CloneRecord, target: str, watches: Watches) -> Iterator[Key]:
    """Yield the source pods that have a ticket of this target."""
    if record.strategy is not CloneStrategy.COPY:
        return
    for archive in (False, True):
        for number in range(READERS_MOST):
            name = clone_source_pod(record.source, number, archive=archive)
            pod = watches.get(PODS, record.namespace, name)
            if pod is not None and f"{TICKET_PREFIX}{target}" in _annotations(pod):
                yield Key(kind="reader", namespace=record.namespace, name=name)


def stood_in_for(body: Object) -> Iterator[Key]:
    """Yield the target of a temporary object, which is named in an annotation because it cannot be its owner."""
    place = _annotations(body).get(ANN_TARGET)
    if place and _is_temporary(body):
        namespace, _, name = place.partition("/")
        yield volume(namespace, name)


def made_of(claim: Object) -> str:
    """Return the name of the VolumeSnapshot from which the storage provisions a PVC; empty if there is none."""
    ref = data_ref(claim.get("spec") or {})
    return ref.name if ref is not None and ref.kind == VOLUME_SNAPSHOTS.kind else ""


def temporary(snapshot: Object) -> Iterator[Key]:
    """Yield the key of a temporary snapshot, which is deleted when no clone needs it any more."""
    if _is_temporary(snapshot):
        yield Key(kind="snapshot", namespace=snapshot["metadata"]["namespace"], name=snapshot["metadata"]["name"])


def _is_temporary(body: Object) -> bool:
    return (body["metadata"].get("labels") or {}).get(LABEL_TEMPORARY) == "true"


def _is_going(body: Object | None) -> bool:
    return body is None or "deletionTimestamp" in body["metadata"]


def _annotations(body: Object | None) -> Mapping[str, str]:
    annotations: Mapping[str, str] = ((body or {}).get("metadata") or {}).get("annotations") or {}
    return annotations


def _face(body: Object | None) -> object:
    """Return the fields of a source that its clones depend on."""
    if body is None:
        return None
    metadata = body["metadata"]
    phase = (body.get("status") or {}).get("phase")
    return metadata["uid"], phase, "deletionTimestamp" in metadata, _annotations(body).get(ANN_POD_PHASE)
