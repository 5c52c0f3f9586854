"""Reconciler of ObjectTransfers.

    Pending ── Running ───────────────────────────────────────────────────────────────────────────────────── Complete
    waits      recorded ── target claim ── given up ── source deleted ── claimRef ── bound ── policy ── DataVolume

The content is in one PersistentVolume, which is protected in two ways. Its reclaim policy is set to Retain before
anything is deleted, and its claimRef always names an existing PVC: the source's until the volume is rebound to the
target (`cdi.reconcile.actions.Rebind`, as with prime PVCs). For that a finalizer keeps the deleted source PVC until the
target is bound. The deletion timestamp prevents new pods from using the PVC, while Kubernetes' own finalizer shows
whether a pod still uses it. Objects are deleted by UID only.

A recorded transfer always has its finalizer on the source PVC. Whether it may be removed depends on the transfer and
on the PVC, either of which may have changed since it was observed: a transfer that looks Pending may have begun before
the controller was restarted. It is therefore removed only while both still have the observed resourceVersions.

What cannot be derived from the objects later is written into ``status.data`` before the first of them is changed. Until
the source is given up, which is recorded as well, everything can be rolled back: deleting the transfer does that. After
that point the transfer continues to its end.

PVCs, volumes and transfers are observed at different times. An object that is not observed is therefore not treated as
lost: only a volume in the phase Released has lost its PVC.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cdi.api.document import parse_json
from cdi.api.errors import AlreadyExists, CdiError, ClaimLost, ClaimMisbound, InvalidManifest
from cdi.api.phases import Phase, TransferPhase, TransferReason
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    DeleteObject,
    Plan,
    Rebind,
    RequireVersion,
    SetFinalizer,
    SetReclaimPolicy,
    WithdrawClaim,
)
from cdi.reconcile.origin import Refuse, Wait
from cdi.reconcile.transfer.manifests import build_claim, build_data_volume
from cdi.reconcile.transfer.ready import PROTECTION, Ready, examine, in_use, occupant, others, taken
from cdi.reconcile.transfer.record import ANN_TRANSFER, FINALIZER, TransferRecord, lock
from cdi.reconcile.transfer.shown import Step, complete, error, moving, refused, shown, stuck
from cdi.reconcile.transfer.world import TransferWorld, place
from cdi.reconcile.world import Claim, Refusal, Volume

RETAIN: Final = "Retain"
_ENDED: Final = (TransferPhase.COMPLETE, TransferPhase.ERROR)


def reconcile_transfer(world: TransferWorld) -> Plan:
    """Return the plan for one reconcile.

    It is a pure function: no I/O, no clock, the same world gives the same plan.
    """
    ended, leaving = world.phase in _ENDED, world.transfer.metadata.deletion_timestamp is not None
    if world.refusal is not None:
        if leaving and _is_of_data_volume(world.refusal):
            # The DataVolume is created last: the PVC has the volume by then, and stays.
            return Plan(actions=_let_go(world))
        return refused(world, world.refusal)
    if ended or (leaving and world.phase != TransferPhase.RUNNING):
        return Plan(actions=_let_go(world))
    if world.phase != TransferPhase.RUNNING:
        return shown(world, _pending(world))
    record = world.record
    if record is None:
        lost = InvalidManifest(
            "the record of this transfer is missing from its status.data",
            remedy="check which PersistentVolume the source's PVC had; then delete this ObjectTransfer and create "
            "it again",
        )
        return shown(world, error(lost))
    undone = _undone(world, record) if leaving else None
    return Plan(actions=undone) if undone is not None else shown(world, _running(world, record))


# --- preconditions ----------------------------------------------------------------------------------------------


def _pending(world: TransferWorld) -> Step:
    found = examine(world)
    if isinstance(found, Refuse):
        return Step(
            phase=TransferPhase.ERROR,
            reason=found.failure.code,
            message=found.failure.message,
            actions=_let_go(world),
            warns=True,
        )
    if isinstance(found, Wait):
        return Step(
            phase=TransferPhase.PENDING,
            reason=found.reason,
            message=found.message,
            # A waiting transfer must not delay the deletion of the source or of itself.
            actions=_let_go(world),
            warns=found.event is not None,
        )
    finalizers = world.transfer.metadata.finalizers or ()
    if world.holds(found.claim) and FINALIZER in finalizers:
        return _begun(world, found)
    return Step(
        phase=TransferPhase.PENDING,
        reason=TransferReason.STARTING,
        message=f"PVC {place(world.source)} is ready to be moved",
        actions=(_own_finalizer(world, present=True), _hold(world, found.claim)),
    )


def _begun(world: TransferWorld, found: Ready) -> Step:
    """Return the step that records the transfer, after all preconditions were checked again under the lock."""
    record = TransferRecord(
        claim=found.claim.uid,
        volume=found.volume.name,
        volume_uid=found.volume.uid,
        reclaim=found.volume.reclaim,
    )
    if found.data_volume is not None:
        body = world.facts.data_volume_body(*world.source)
        assert body is not None
        record = replace(record, data_volume=found.data_volume.metadata.uid or "", body=build_data_volume(world, body))
    # The observed finalizer may have been removed since, in which case this adds it again or fails.
    held = _hold(world, found.claim)
    return moving(record, f"moving PersistentVolume {found.volume.name} to PVC {place(world.target)}", held)


# --- running transfers ------------------------------------------------------------------------------------------


def _running(world: TransferWorld, record: TransferRecord) -> Step:
    volume = _volume(world, record)
    if volume is None:
        lost = ClaimLost(f"PersistentVolume {record.volume} was deleted by another client", remedy="")
        return error(lost, record, *_unmade(world))
    target = _target(world)
    if target is not None and volume.claim_uid == target.uid:
        return _handed_over(world, record, volume, target)
    if volume.claim_uid != record.claim:
        return _elsewhere(world, record, volume)
    source = _source(world, record)
    if source is None:
        return _forced(world, record, volume)
    kind = occupant(world)
    given_up = record.given_up or source.deleting
    if kind and not given_up:
        return error(taken(world, kind), record, *_unmade(world), _policy(record, record.reclaim, source))
    if kind:
        # The source cannot be restored any more, so the conflicting object must be deleted.
        message = f"{kind} {place(world.target)} already exists. Try: delete it; the transfer continues automatically"
        return stuck(record, taken(world, kind).code, message)
    return _before_hand_over(world, record, volume, source, target)


def _before_hand_over(
    world: TransferWorld, record: TransferRecord, volume: Volume, source: Claim, target: Claim | None
) -> Step:
    """Return the step that creates the target PVC and deletes the source, before the volume is rebound."""
    if target is None:
        body = world.facts.claim_body(*world.source)
        assert body is not None
        create = CreateObject(body=build_claim(world, body, record))
        return moving(record, f"creating PVC {place(world.target)}", create)
    if target.deleting:
        return moving(record, f"PVC {place(world.target)} is being deleted and will be recreated")
    if not source.deleting and not world.holds(source):
        return moving(record, f"locking PVC {place(world.source)} with a finalizer", _hold(world, source))
    users = in_use(world)
    if not source.deleting and users:
        return stuck(record, TransferReason.IN_USE, f"{users}. Try: stop it; the transfer continues automatically")
    # The observed policy may be stale, so the action is always included; it checks the policy itself.
    kept = _policy(record, RETAIN, source)
    if not record.given_up:
        return moving(
            replace(record, given_up=True), f"PVC {place(world.source)} will be deleted without its volume", kept
        )
    deletion = _deletion(world, record, source)
    if deletion is not None:
        return replace(deletion, actions=(kept, *deletion.actions) if deletion.actions else ())
    busy = others(world, source)
    if PROTECTION in source.finalizers or busy:
        why = users or f"PVC {place(world.source)} has the finalizer {', '.join(busy or (PROTECTION,))}"
        message = f"{why}; its volume is moved afterwards"
        return stuck(record, TransferReason.IN_USE, message) if users or busy else moving(record, message)
    rebind = Rebind(
        volume=volume.name,
        volume_uid=volume.uid,
        namespace=target.namespace,
        prime=source.name,
        prime_uid=source.uid,
        target=target.name,
        target_uid=target.uid,
        prime_namespace=source.namespace,
    )
    return moving(record, f"rebinding PersistentVolume {volume.name} to PVC {place(world.target)}", kept, rebind)


def _handed_over(world: TransferWorld, record: TransferRecord, volume: Volume, target: Claim) -> Step:
    """Return the step after rebinding: remove the source, restore the reclaim policy, create the DataVolume."""
    if target.deleting:
        # The reclaim policy stays Retain, so that the volume is not deleted with the PVC.
        message = f"PVC {place(world.target)} is being deleted; PersistentVolume {volume.name} is kept"
        return stuck(record, TransferReason.BEING_DELETED, message)
    if target.phase != "Bound" or volume.phase != "Bound":
        message = f"PVC {place(world.target)} is being bound to PersistentVolume {volume.name}"
        return Step(phase=TransferPhase.RUNNING, reason=TransferReason.BINDING, message=message, record=record)
    source = _source(world, record)
    if source is not None:
        gone = () if source.deleting else (_delete(source),)
        return moving(
            record, f"deleting PVC {place(world.source)}, which has no volume any more", *gone, *_unlocked(world)
        )
    if volume.reclaim != record.reclaim:
        policy = _policy(record, record.reclaim, target)
        return moving(
            record, f"restoring the reclaim policy {record.reclaim} of PersistentVolume {volume.name}", policy
        )
    if record.data_volume:
        return _data_volume(world, record, target)
    return complete(_policy(record, record.reclaim, target))


def _data_volume(world: TransferWorld, record: TransferRecord, target: Claim) -> Step:
    where = place(world.target)
    dv = world.objects.data_volume(*world.target)
    if dv is None:
        return moving(record, f"creating DataVolume {where}", CreateObject(body=parse_json(record.body)))
    if not world.is_ours(dv.metadata.annotations):
        other = AlreadyExists(
            f"DataVolume {where} was created by another client; PVC {where} has the volume",
            remedy="keep it: it adopts the PVC, which is annotated as populated for it",
        )
        return error(other, record)
    phase = (dv.status.phase if dv.status is not None else None) or "new"
    if phase != Phase.SUCCEEDED:
        return moving(record, f"DataVolume {where} is {phase}; waiting for it to adopt PVC {where}")
    before = world.objects.data_volume(*world.source)
    if before is not None and before.metadata.uid == record.data_volume:
        message = f"DataVolume {place(world.source)} is being deleted"
        return Step(phase=TransferPhase.RUNNING, reason=TransferReason.BEING_DELETED, message=message, record=record)
    return complete(_policy(record, record.reclaim, target))


def _forced(world: TransferWorld, record: TransferRecord, volume: Volume) -> Step:
    """Return the step after the source PVC disappeared while no other PVC has the volume."""
    if volume.phase == "Bound":
        return moving(
            record,
            f"PVC {place(world.source)} is missing from the cache, but PersistentVolume {volume.name} is bound to it",
        )
    lost = ClaimLost(
        f"PVC {place(world.source)} was deleted by force before its volume was moved; {_left(record, volume)}",
        remedy=f"{_free(volume)}; PVC {place(world.target)}, which names it, is bound to it afterwards",
    )
    return error(lost, record)


def _elsewhere(world: TransferWorld, record: TransferRecord, volume: Volume) -> Step:
    """Return the step if the volume belongs to neither the source PVC nor the observed target PVC."""
    target = place(world.target)
    if (volume.claim_namespace, volume.claim_name) == world.target and not occupant(world):
        if volume.phase == "Bound":
            return moving(
                record, f"PersistentVolume {volume.name} is bound to PVC {target}, which is missing from the cache"
            )
        gone: CdiError = ClaimLost(
            f"PVC {target} was deleted after it received the volume; {_left(record, volume)}",
            remedy=f"{_free(volume)}, and create a PVC with volumeName {volume.name}",
        )
        return error(gone, record, *_unlocked(world))
    new = f"bound to PVC {volume.claim_namespace}/{volume.claim_name}" if volume.claim_name else "freed"
    gone = ClaimMisbound(
        f"PersistentVolume {volume.name} was {new} by another client; {_left(record, volume)}",
        remedy="check the audit log for that client, and delete this ObjectTransfer",
    )
    return error(gone, record, *_unmade(world))


def _left(record: TransferRecord, volume: Volume) -> str:
    """Return a description of the state in which the volume is left, for an administrator."""
    before = f", which was {record.reclaim}" if volume.reclaim != record.reclaim else ""
    return f"PersistentVolume {volume.name} is left unchanged, with reclaim policy {volume.reclaim}{before}"


# --- rollback ---------------------------------------------------------------------------------------------------


def _undone(world: TransferWorld, record: TransferRecord) -> tuple[Action, ...] | None:
    """Return the actions that roll the transfer back; None if it is too late and the transfer continues."""
    source, volume = _source(world, record), _volume(world, record)
    if record.given_up or source is None or source.deleting or volume is None or volume.claim_uid != source.uid:
        return None
    # The observed record may be outdated, as when the source has been given up since.
    return (_unchanged(world), *_unmade(world), _policy(record, record.reclaim, source), *_let_go(world))


def _is_of_data_volume(refusal: Refusal) -> bool:
    return isinstance(refusal.action, CreateObject) and refusal.action.body["kind"] == "DataVolume"


def _unmade(world: TransferWorld) -> tuple[Action, ...]:
    """Delete a target PVC that has not received the volume, even if it has not been observed yet."""
    namespace, name = world.target
    return (WithdrawClaim(namespace=namespace, name=name, mark=(ANN_TRANSFER, world.uid)),)


def _free(volume: Volume) -> str:
    return f"""kubectl patch pv {volume.name} --type=json -p '[{{"op": "remove", "path": "/spec/claimRef"}}]'"""


def _let_go(world: TransferWorld) -> tuple[Action, ...]:
    """Remove all finalizers of this transfer, its own one last: without the transfer the others would stay forever.

    They stay if the transfer has changed since it was observed.
    """
    own = FINALIZER in (world.transfer.metadata.finalizers or ())
    removed = (*_unlocked(world), *((_own_finalizer(world, present=False),) if own else ()))
    return (_unchanged(world), *removed) if removed else ()


def _unlocked(world: TransferWorld) -> tuple[Action, ...]:
    claim = world.claim
    if claim is None or not (world.holds(claim) or FINALIZER in (world.transfer.metadata.finalizers or ())):
        return ()  # while the transfer has its own finalizer, the PVC may have one that is not observed yet
    return (replace(_hold(world, claim), present=False),)


# --- lookups ----------------------------------------------------------------------------------------------------


def _volume(world: TransferWorld, record: TransferRecord) -> Volume | None:
    volume = world.objects.volume(record.volume)
    return volume if volume is not None and volume.uid == record.volume_uid else None


def _source(world: TransferWorld, record: TransferRecord) -> Claim | None:
    claim = world.claim
    return claim if claim is not None and claim.uid == record.claim else None


def _target(world: TransferWorld) -> Claim | None:
    claim = world.objects.claim(*world.target)
    return claim if claim is not None and world.is_ours(claim.annotations) else None


# --- actions ----------------------------------------------------------------------------------------------------


def _deletion(world: TransferWorld, record: TransferRecord, source: Claim) -> Step | None:
    """Delete the DataVolume first, and the PVC after it, since the DataVolume would report a lost PVC."""
    dv = world.objects.data_volume(*world.source)
    if dv is not None and record.data_volume and dv.metadata.uid == record.data_volume:
        namespace, name = world.source
        delete = DeleteObject(plural="datavolumes", namespace=namespace, name=name, uid=record.data_volume)
        actions: tuple[Action, ...] = () if dv.metadata.deletion_timestamp is not None else (delete,)
        return moving(record, f"deleting DataVolume {place(world.source)} without its volume", *actions)
    if source.deleting:
        return None
    return moving(record, f"deleting PVC {place(world.source)} without its volume", _delete(source))


def _delete(claim: Claim) -> DeleteObject:
    return DeleteObject(plural="persistentvolumeclaims", namespace=claim.namespace, name=claim.name, uid=claim.uid)


def _policy(record: TransferRecord, policy: str, claim: Claim) -> SetReclaimPolicy:
    return SetReclaimPolicy(
        volume=record.volume,
        volume_uid=record.volume_uid,
        policy=policy,
        namespace=claim.namespace,
        claim=claim.name,
        claim_uid=claim.uid,
    )


def _hold(world: TransferWorld, claim: Claim) -> SetFinalizer:
    """Add the finalizer under the observed version, without other transfers' finalizers, so that only one can start."""
    return SetFinalizer(
        plural="persistentvolumeclaims",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        finalizer=lock(world.uid),
        present=True,
        version=claim.version,
    )


def _unchanged(world: TransferWorld) -> RequireVersion:
    metadata = world.transfer.metadata
    return RequireVersion(
        plural="objecttransfers",
        namespace="",
        name=metadata.name or "",
        uid=world.uid,
        version=metadata.resource_version or "",
    )


def _own_finalizer(world: TransferWorld, *, present: bool) -> SetFinalizer:
    return SetFinalizer(
        plural="objecttransfers",
        namespace="",
        name=world.transfer.metadata.name or "",
        uid=world.uid,
        finalizer=FINALIZER,
        present=present,
    )
