"""Garbage collection of clones' temporary objects that have no owner.

These are labelled: snapshots, and PVCs restored from snapshots, which several clones may share; PVCs in another
namespace than the target's; source pods. Whether one is still needed is derived from the existing targets at each
change, so a lost action leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cdi.api.annotations import CLONE_TARGET, TICKETS
from cdi.api.datavolume import DataVolume
from cdi.api.names import ANN_POD_PHASE
from cdi.api.phases import TERMINAL_PHASES
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import DeleteObject, PatchObject, Plan
from cdi.reconcile.clone.plan_annotation import (
    ANN_SOURCE_UID,
    ANN_TARGET,
    LABEL_TEMPORARY,
    ClonePlanRecord,
    is_temporary_for,
    temporary_pvc,
)
from cdi.reconcile.clone.size_detection import is_wanted
from cdi.reconcile.clone.types import SizeDetectionPod, Snapshot, SourcePod
from cdi.reconcile.context import Lister
from cdi.reconcile.datavolume.attempts import ANNOTATION as LEDGER
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.types import PVC


def reconcile_snapshot(snapshot: Snapshot, targets: Iterable[PVC]) -> Plan:
    """Delete a temporary snapshot that no clone needs.

    It is kept while a PVC is being created from it, whatever the state of the clone: the storage would not delete it
    earlier, and the deletion would not be retried soon.

    Args:
        snapshot: The snapshot.
        targets: PVCs that may name it or be created from it.

    """
    if snapshot.labels.get(LABEL_TEMPORARY) != "true" or snapshot.deleting:
        return Plan()
    place = snapshot.namespace, snapshot.name
    if any(needs_snapshot(target, *place) or _is_being_made(target, *place) for target in targets):
        return Plan()
    gone = DeleteObject(plural="volumesnapshots", namespace=snapshot.namespace, name=snapshot.name, uid=snapshot.uid)
    return Plan(actions=(gone,))


def needs_snapshot(target: PVC, namespace: str, snapshot: str) -> bool:
    """Return whether an unfinished clone uses this snapshot or is about to."""
    record = ClonePlanRecord.read(target)
    named = record is not None and (record.namespace, record.snapshot) == (namespace, snapshot)
    return named and _under_way(target)


def _is_being_made(claim: PVC, namespace: str, snapshot: str) -> bool:
    """Return whether a PVC is being created from this snapshot."""
    ref = claim.data_ref
    made_of = ref is not None and (ref.kind, ref.name) == ("VolumeSnapshot", snapshot)
    return made_of and claim.namespace == namespace and claim.phase == "Pending"


def is_reading(target: PVC, namespace: str, claim: str) -> bool:
    """Return whether an unfinished clone is copied from this PVC or is about to be."""
    record = ClonePlanRecord.read(target)
    named = record is not None and (record.namespace, record.restored) == (namespace, claim)
    return named and _under_way(target)


def _under_way(target: PVC) -> bool:
    ended = target.annotations.get(ANN_POD_PHASE) in TERMINAL_PHASES
    return not target.deleting and not ended and not AttemptHistory.read(target.annotations.get(LEDGER)).done


def is_copying(target: PVC, source: str) -> bool:
    """Return whether an unfinished host-assisted clone has the source with this UID."""
    record = ClonePlanRecord.read(target)
    named = record is not None and (record.strategy, record.source) == (CloneStrategy.COPY, source)
    return named and _under_way(target)


def reconcile_reader(
    namespace: str, name: str, reader: SourcePod, objects: Lister, covers: Callable[[str], bool] = lambda _: True
) -> Plan:
    """Remove tickets of targets that no longer exist or changed their plan; delete a source pod without tickets.

    Args:
        namespace: The pod's namespace.
        name: The pod's name.
        reader: The source pod.
        objects: The observed objects.
        covers: Whether a namespace is watched; targets in other namespaces are unknown, so their tickets stay.

    """
    if reader.deleting:
        return Plan()
    lost = {uid for uid in reader.tickets if not _is_read_for(namespace, reader, uid, objects, covers)}
    if len(lost) == len(reader.tickets):
        return Plan(actions=(DeleteObject(plural="pods", namespace=namespace, name=name, uid=reader.uid),))
    return Plan(actions=(remove_assignments(namespace, name, reader, lost),) if lost else ())


def remove_assignments(namespace: str, name: str, reader: SourcePod, targets: Iterable[str]) -> PatchObject:
    """Return the patch that removes the tickets for the target PVCs with these UIDs."""
    annotations: dict[str, str | None] = {}
    for uid in sorted(targets):
        annotations |= TICKETS.write(uid, None)
    return PatchObject(plural="pods", namespace=namespace, name=name, uid=reader.uid, annotations=annotations)


def _is_read_for(namespace: str, reader: SourcePod, uid: str, objects: Lister, covers: Callable[[str], bool]) -> bool:
    of, _, name = reader.tickets[uid].claim.partition("/")
    if not covers(of):
        return True
    target = objects.claim(of, name)
    if target is None or target.uid != uid or target.deleting:
        return False
    record = ClonePlanRecord.read(target)
    wanted = (namespace, reader.source, CloneStrategy.COPY)
    return record is not None and (record.namespace, record.source, record.strategy) == wanted


def reconcile_measurement(namespace: str, name: str, pod: SizeDetectionPod, dv: DataVolume | None) -> Plan:
    """Delete the size-detection pod once its DataVolume has the result."""
    if pod.deleting or is_wanted(pod, dv):
        return Plan()
    return Plan(actions=(DeleteObject(plural="pods", namespace=namespace, name=name, uid=pod.uid),))


def reconcile_claim(claim: PVC, objects: Lister, targets: Iterable[PVC]) -> Plan:
    """Delete an unused temporary PVC in the source's namespace; `targets` are PVCs that may be copied from it."""
    if claim.labels.get(LABEL_TEMPORARY) != "true" or ANN_TARGET not in claim.annotations or claim.deleting:
        return Plan()
    if ANN_SOURCE_UID not in claim.annotations:
        return _temporary_pvc(claim, objects)
    if any(is_reading(target, claim.namespace, claim.name) for target in targets):
        return Plan()
    return Plan(actions=(DeleteObject.of_claim(claim),))


def _temporary_pvc(prime: PVC, objects: Lister) -> Plan:
    """Delete a temporary PVC once its target is deleted or uses another one."""
    place = CLONE_TARGET.read(prime.annotations)
    target = objects.claim(*place) if place is not None else None
    if (
        target is not None
        and is_temporary_for(prime, target)
        and temporary_pvc(target) == (prime.namespace, prime.name)
    ):
        return Plan()
    return Plan(actions=(DeleteObject.of_claim(prime),))
