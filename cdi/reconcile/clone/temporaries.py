"""What clones made for themselves and nothing owns: it goes as soon as no clone needs it, whatever became of that one.

These are marked so: snapshots, and claims that snapshots are read through, which several clones may share; claims in
another namespace than the target's; pods that read.  Whether one is needed is told from the targets that are there,
each time anything changes; so none is left behind by a step that was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cdi.api.copy import TICKET_PREFIX
from cdi.api.names import ANN_POD_PHASE
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import DeleteObject, PatchObject, Plan
from cdi.reconcile.clone.facts import Measurement, Reader, Snapshot
from cdi.reconcile.clone.measuring import is_wanted
from cdi.reconcile.clone.record import (
    ANN_SOURCE_UID,
    ANN_TARGET,
    LABEL_TEMPORARY,
    CloneRecord,
    stand_in,
    stands_in_for,
)
from cdi.reconcile.ledger import ANNOTATION as LEDGER
from cdi.reconcile.ledger import Ledger

if TYPE_CHECKING:
    from cdi.api.datavolume import DataVolume
    from cdi.reconcile.world import Claim, Objects


def reconcile_snapshot(snapshot: Snapshot, targets: Iterable[Claim]) -> Plan:
    """`targets` are the claims that may name it, or be made of it.

    While a claim is made of it, it stays, whatever became of the clone: it would not go before, and nobody looks again
    soon.
    """
    if snapshot.labels.get(LABEL_TEMPORARY) != "true" or snapshot.deleting:
        return Plan()
    place = snapshot.namespace, snapshot.name
    if any(needs(target, *place) or _is_being_made(target, *place) for target in targets):
        return Plan()
    gone = DeleteObject(plural="volumesnapshots", namespace=snapshot.namespace, name=snapshot.name, uid=snapshot.uid)
    return Plan(actions=(gone,))


def needs(target: Claim, namespace: str, snapshot: str) -> bool:
    """A clone that is under way is made of this snapshot, or is about to be."""
    record = CloneRecord.read(target)
    named = record is not None and (record.namespace, record.snapshot) == (namespace, snapshot)
    return named and _under_way(target)


def _is_being_made(claim: Claim, namespace: str, snapshot: str) -> bool:
    """Of this snapshot."""
    ref = claim.data_ref
    made_of = ref is not None and (ref.kind, ref.name) == ("VolumeSnapshot", snapshot)
    return made_of and claim.namespace == namespace and claim.phase == "Pending"


def reads(target: Claim, namespace: str, claim: str) -> bool:
    """A clone that is under way is copied out of this claim, or is about to be."""
    record = CloneRecord.read(target)
    named = record is not None and (record.namespace, record.restored) == (namespace, claim)
    return named and _under_way(target)


def _under_way(target: Claim) -> bool:
    ended = target.annotations.get(ANN_POD_PHASE) in ("Succeeded", "Failed")
    return not target.deleting and not ended and not Ledger.read(target.annotations.get(LEDGER)).done


def copies(target: Claim, source: str) -> bool:
    """A clone that is under way is copied by pods out of the source with this uid."""
    record = CloneRecord.read(target)
    named = record is not None and (record.strategy, record.source) == (CloneStrategy.COPY, source)
    return named and _under_way(target)


def reconcile_reader(
    namespace: str, name: str, reader: Reader, objects: Objects, covers: Callable[[str], bool] = lambda _: True
) -> Plan:
    """The pod that reads a source: targets that are gone, or are filled in another way now, have no ticket any more,
    and when the last ticket is gone so is the pod.  Of namespaces that are not covered nothing is known.
    """
    if reader.deleting:
        return Plan()
    lost = {uid for uid in reader.tickets if not _is_read_for(namespace, reader, uid, objects, covers)}
    if len(lost) == len(reader.tickets):
        return Plan(actions=(DeleteObject(plural="pods", namespace=namespace, name=name, uid=reader.uid),))
    return Plan(actions=(without_tickets(namespace, name, reader, lost),) if lost else ())


def without_tickets(namespace: str, name: str, reader: Reader, targets: Iterable[str]) -> PatchObject:
    """A reader sends nothing more to the claims with these uids."""
    annotations = {f"{TICKET_PREFIX}{uid}": None for uid in sorted(targets)}
    return PatchObject(plural="pods", namespace=namespace, name=name, uid=reader.uid, annotations=annotations)


def _is_read_for(namespace: str, reader: Reader, uid: str, objects: Objects, covers: Callable[[str], bool]) -> bool:
    of, _, name = reader.tickets[uid].claim.partition("/")
    if not covers(of):
        return True
    target = objects.claim(of, name)
    if target is None or target.uid != uid or target.deleting:
        return False
    record = CloneRecord.read(target)
    wanted = (namespace, reader.source, CloneStrategy.COPY)
    return record is not None and (record.namespace, record.source, record.strategy) == wanted


def reconcile_measurement(namespace: str, name: str, pod: Measurement, dv: DataVolume | None) -> Plan:
    """The pod that looks how large a source's disk is: until its DataVolume knows."""
    if pod.deleting or is_wanted(pod, dv):
        return Plan()
    return Plan(actions=(DeleteObject(plural="pods", namespace=namespace, name=name, uid=pod.uid),))


def reconcile_claim(claim: Claim, objects: Objects, targets: Iterable[Claim]) -> Plan:
    """A claim in the source's namespace; `targets` are the claims that may be made from it."""
    if claim.labels.get(LABEL_TEMPORARY) != "true" or ANN_TARGET not in claim.annotations or claim.deleting:
        return Plan()
    if ANN_SOURCE_UID not in claim.annotations:
        return _stand_in(claim, objects)
    if any(reads(target, claim.namespace, claim.name) for target in targets):
        return Plan()
    return Plan(actions=(_gone(claim),))


def _stand_in(prime: Claim, objects: Objects) -> Plan:
    """It goes once its target is gone, or is filled in another way now."""
    place = prime.annotations[ANN_TARGET]
    namespace, _, name = place.partition("/")
    target = objects.claim(namespace, name)
    if target is not None and stands_in_for(prime, target) and stand_in(target) == (prime.namespace, prime.name):
        return Plan()
    return Plan(actions=(_gone(prime),))


def _gone(claim: Claim) -> DeleteObject:
    return DeleteObject(plural="persistentvolumeclaims", namespace=claim.namespace, name=claim.name, uid=claim.uid)
