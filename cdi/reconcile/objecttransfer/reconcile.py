"""Reconciler of ObjectTransfers.

    Pending ── Running ───────────────────────────────────────────────────────────────────────────────────── Complete
    waits      recorded ── target claim ── given up ── source deleted ── claimRef ── bound ── policy ── DataVolume

The content is in one PersistentVolume, which is protected in two ways. Its reclaim policy is set to Retain before
anything is deleted, and its claimRef always names an existing PVC: the source's until the volume is rebound to the
target (`cdi.reconcile.actions.RebindVolume`, as with prime PVCs). For that a finalizer keeps the deleted source PVC
until the target is bound. The deletion timestamp prevents new pods from using the PVC, while Kubernetes' own finalizer
shows whether a pod still uses it. Objects are deleted by UID only.

A recorded transfer always has its finalizer on the source PVC. Whether it may be removed depends on the transfer and
on the PVC, either of which may have changed since it was observed: a transfer that looks Pending may have begun before
the controller was restarted. It is therefore removed only while both still have the observed resourceVersions.

What cannot be derived from the objects later is written into ``status.data`` before the first of them is changed. Until
the source is given up, which is recorded as well, everything can be rolled back: deleting the transfer does that. After
that point the transfer continues to its end.

PVCs, volumes and transfers are observed at different times. An object that is not observed is therefore not treated as
lost: only a volume in the phase Released has lost its PVC. A transfer that has begun ends with an error because of its
volume only if the observed volume is the newest: another controller may be ahead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cdi.api.annotations import TRANSFER_UID
from cdi.api.errors import AlreadyExists, CdiError, ClaimLost, ClaimMisbound, InvalidManifest
from cdi.api.json_document import parse_json
from cdi.api.phases import Phase, TransferPhase, TransferReason
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    DeleteObject,
    DeleteUnboundClaim,
    Plan,
    RebindVolume,
    RequireVersion,
    SetFinalizer,
    SetReclaimPolicy,
)
from cdi.reconcile.context import Rejection
from cdi.reconcile.objecttransfer.context import TransferWorld, place
from cdi.reconcile.objecttransfer.manifests import build_claim, build_data_volume
from cdi.reconcile.objecttransfer.preconditions import (
    PROTECTION,
    Ready,
    check,
    conflict_error,
    foreign_finalizers,
    in_use,
    target_conflict,
)
from cdi.reconcile.objecttransfer.record import FINALIZER, TransferRecord, lock_finalizer
from cdi.reconcile.objecttransfer.status import Step, blocked, complete, error, refused, running, shown
from cdi.reconcile.types import PVC, Pending, Rejected, Volume

RETAIN: Final = "Retain"
_ENDED: Final = (TransferPhase.COMPLETE, TransferPhase.ERROR)


def reconcile_transfer(context: TransferWorld) -> Plan:
    """Return the plan for one reconcile.

    It is a pure function: no I/O, no clock, the same context gives the same plan.
    """
    ended, leaving = context.phase in _ENDED, context.transfer.metadata.deletion_timestamp is not None
    if context.refusal is not None:
        if leaving and _is_of_data_volume(context.refusal):
            # The DataVolume is created last: the PVC has the volume by then, and stays.
            return Plan(actions=_remove_finalizers(context))
        return refused(context, context.refusal)
    if ended or (leaving and context.phase != TransferPhase.RUNNING):
        return Plan(actions=_remove_finalizers(context))
    if context.phase != TransferPhase.RUNNING:
        return shown(context, _pending(context))
    record = context.record
    if record is None:
        lost = InvalidManifest(
            "the record of this transfer is missing from its status.data",
            remedy="check which PersistentVolume the source's PVC had; then delete this ObjectTransfer and create "
            "it again",
        )
        return shown(context, error(lost))
    undone = _rollback(context, record) if leaving else None
    return Plan(actions=undone) if undone is not None else shown(context, _running(context, record))


# --- preconditions ----------------------------------------------------------------------------------------------


def _pending(context: TransferWorld) -> Step:
    found = check(context)
    if isinstance(found, Rejected):
        return Step(
            phase=TransferPhase.ERROR,
            reason=found.failure.code,
            message=found.failure.message,
            actions=_remove_finalizers(context),
            warns=True,
        )
    if isinstance(found, Pending):
        return Step(
            phase=TransferPhase.PENDING,
            reason=found.reason,
            message=found.message,
            # A waiting transfer must not delay the deletion of the source or of itself.
            actions=_remove_finalizers(context),
            warns=found.event is not None,
        )
    finalizers = context.transfer.metadata.finalizers or ()
    if context.holds(found.claim) and FINALIZER in finalizers:
        return _begun(context, found)
    return Step(
        phase=TransferPhase.PENDING,
        reason=TransferReason.STARTING,
        message=f"PVC {place(context.source)} is ready to be moved",
        actions=(_own_finalizer(context, present=True), _hold(context, found.claim)),
    )


def _begun(context: TransferWorld, found: Ready) -> Step:
    """Return the step that records the transfer, after all preconditions were checked again under the lock."""
    record = TransferRecord(
        claim=found.claim.uid,
        volume=found.volume.name,
        volume_uid=found.volume.uid,
        reclaim=found.volume.reclaim,
    )
    if found.data_volume is not None:
        body = context.facts.data_volume_body(*context.source)
        assert body is not None
        record = replace(
            record, data_volume=found.data_volume.metadata.uid or "", body=build_data_volume(context, body)
        )
    # The observed finalizer may have been removed since, in which case this adds it again or fails.
    held = _hold(context, found.claim)
    return running(record, f"moving PersistentVolume {found.volume.name} to PVC {place(context.target)}", held)


# --- running transfers ------------------------------------------------------------------------------------------


def _running(context: TransferWorld, record: TransferRecord) -> Step:
    volume = _volume(context, record)
    if volume is None:
        lost = ClaimLost(f"PersistentVolume {record.volume} was deleted by another client", remedy="")
        return error(lost, record, _observed(record, volume), *_delete_target(context))
    target = _target(context)
    if target is not None and volume.claim_uid == target.uid:
        return _handed_over(context, record, volume, target)
    if volume.claim_uid != record.claim:
        return _bound_elsewhere(context, record, volume)
    source = _source(context, record)
    if source is None:
        return _source_deleted_by_force(context, record, volume)
    kind = target_conflict(context)
    given_up = record.given_up or source.deleting
    if kind and not given_up:
        # The observed record may be outdated, as when the source has been given up since.
        undone = (_unchanged(context), *_delete_target(context), _policy(record, record.reclaim, source))
        return error(conflict_error(context, kind), record, *undone)
    if kind:
        # The source cannot be restored any more, so the conflicting object must be deleted.
        message = f"{kind} {place(context.target)} already exists. Try: delete it; the transfer continues automatically"
        return blocked(record, conflict_error(context, kind).code, message)
    return _before_hand_over(context, record, volume, source, target)


def _before_hand_over(
    context: TransferWorld, record: TransferRecord, volume: Volume, source: PVC, target: PVC | None
) -> Step:
    """Return the step that creates the target PVC and deletes the source, before the volume is rebound."""
    if target is None:
        body = context.facts.claim_body(*context.source)
        assert body is not None
        create = CreateObject(body=build_claim(context, body, record))
        return running(record, f"creating PVC {place(context.target)}", create)
    if target.deleting:
        return running(record, f"PVC {place(context.target)} is being deleted and will be recreated")
    if not source.deleting and not context.holds(source):
        return running(record, f"locking PVC {place(context.source)} with a finalizer", _hold(context, source))
    users = in_use(context)
    if not source.deleting and users:
        return blocked(record, TransferReason.IN_USE, f"{users}. Try: stop it; the transfer continues automatically")
    # The observed policy may be stale, so the action is always included; it checks the policy itself.
    kept = _policy(record, RETAIN, source)
    if not record.given_up:
        return running(
            replace(record, given_up=True), f"PVC {place(context.source)} will be deleted without its volume", kept
        )
    deletion = _deletion(context, record, source)
    if deletion is not None:
        return replace(deletion, actions=(kept, *deletion.actions) if deletion.actions else ())
    busy = foreign_finalizers(context, source)
    if PROTECTION in source.finalizers or busy:
        why = users or f"PVC {place(context.source)} has the finalizer {', '.join(busy or (PROTECTION,))}"
        message = f"{why}; its volume is moved afterwards"
        return blocked(record, TransferReason.IN_USE, message) if users or busy else running(record, message)
    rebind = RebindVolume(
        volume=volume.name,
        volume_uid=volume.uid,
        namespace=target.namespace,
        prime=source.name,
        prime_uid=source.uid,
        target=target.name,
        target_uid=target.uid,
        prime_namespace=source.namespace,
    )
    return running(record, f"rebinding PersistentVolume {volume.name} to PVC {place(context.target)}", kept, rebind)


def _handed_over(context: TransferWorld, record: TransferRecord, volume: Volume, target: PVC) -> Step:
    """Return the step after rebinding: remove the source, restore the reclaim policy, create the DataVolume."""
    if target.deleting:
        # The reclaim policy stays Retain, so that the volume is not deleted with the PVC.
        message = f"PVC {place(context.target)} is being deleted; PersistentVolume {volume.name} is kept"
        return blocked(record, TransferReason.BEING_DELETED, message)
    if target.phase != "Bound" or volume.phase != "Bound":
        message = f"PVC {place(context.target)} is being bound to PersistentVolume {volume.name}"
        return Step(phase=TransferPhase.RUNNING, reason=TransferReason.BINDING, message=message, record=record)
    source = _source(context, record)
    if source is not None:
        gone = () if source.deleting else (DeleteObject.of_claim(source),)
        return running(
            record, f"deleting PVC {place(context.source)}, which has no volume any more", *gone, *_remove_lock(context)
        )
    if volume.reclaim != record.reclaim:
        policy = _policy(record, record.reclaim, target)
        return running(
            record, f"restoring the reclaim policy {record.reclaim} of PersistentVolume {volume.name}", policy
        )
    if record.data_volume:
        return _data_volume(context, record, target)
    return complete(_policy(record, record.reclaim, target))


def _data_volume(context: TransferWorld, record: TransferRecord, target: PVC) -> Step:
    where = place(context.target)
    dv = context.objects.data_volume(*context.target)
    if dv is None:
        return running(record, f"creating DataVolume {where}", CreateObject(body=parse_json(record.body)))
    if not context.is_ours(dv.metadata.annotations):
        other = AlreadyExists(
            f"DataVolume {where} was created by another client; PVC {where} has the volume",
            remedy="keep it: it adopts the PVC, which is annotated as populated for it",
        )
        return error(other, record)
    phase = (dv.status.phase if dv.status is not None else None) or "new"
    if phase != Phase.SUCCEEDED:
        return running(record, f"DataVolume {where} is {phase}; waiting for it to adopt PVC {where}")
    before = context.objects.data_volume(*context.source)
    if before is not None and before.metadata.uid == record.data_volume:
        message = f"DataVolume {place(context.source)} is being deleted"
        return Step(phase=TransferPhase.RUNNING, reason=TransferReason.BEING_DELETED, message=message, record=record)
    return complete(_policy(record, record.reclaim, target))


def _source_deleted_by_force(context: TransferWorld, record: TransferRecord, volume: Volume) -> Step:
    """Return the step after the source PVC disappeared while no other PVC has the volume."""
    if volume.phase == "Bound":
        return running(
            record,
            f"PVC {place(context.source)} is missing from the cache, but PersistentVolume {volume.name} is bound to it",
        )
    lost = ClaimLost(
        f"PVC {place(context.source)} was deleted by force before its volume was moved; {_left(record, volume)}",
        remedy=f"{_free(volume)}; PVC {place(context.target)}, which names it, is bound to it afterwards",
    )
    return error(lost, record)


def _bound_elsewhere(context: TransferWorld, record: TransferRecord, volume: Volume) -> Step:
    """Return the step if the volume belongs to neither the source PVC nor the observed target PVC."""
    target = place(context.target)
    if (volume.claim_namespace, volume.claim_name) == context.target and not target_conflict(context):
        if volume.phase == "Bound":
            return running(
                record, f"PersistentVolume {volume.name} is bound to PVC {target}, which is missing from the cache"
            )
        gone: CdiError = ClaimLost(
            f"PVC {target} was deleted after it received the volume; {_left(record, volume)}",
            remedy=f"{_free(volume)}, and create a PVC with volumeName {volume.name}",
        )
        return error(gone, record, _observed(record, volume), *_remove_lock(context))
    new = f"bound to PVC {volume.claim_namespace}/{volume.claim_name}" if volume.claim_name else "freed"
    gone = ClaimMisbound(
        f"PersistentVolume {volume.name} was {new} by another client; {_left(record, volume)}",
        remedy="check the audit log for that client, and delete this ObjectTransfer",
    )
    return error(gone, record, _observed(record, volume), *_delete_target(context))


def _left(record: TransferRecord, volume: Volume) -> str:
    """Return a description of the state in which the volume is left, for an administrator."""
    before = f", which was {record.reclaim}" if volume.reclaim != record.reclaim else ""
    return f"PersistentVolume {volume.name} is left unchanged, with reclaim policy {volume.reclaim}{before}"


# --- rollback ---------------------------------------------------------------------------------------------------


def _rollback(context: TransferWorld, record: TransferRecord) -> tuple[Action, ...] | None:
    """Return the actions that roll the transfer back; None if it is too late and the transfer continues."""
    source, volume = _source(context, record), _volume(context, record)
    if record.given_up or source is None or source.deleting or volume is None or volume.claim_uid != source.uid:
        return None
    # The observed record may be outdated, as when the source has been given up since.
    return (
        _unchanged(context),
        *_delete_target(context),
        _policy(record, record.reclaim, source),
        *_remove_finalizers(context),
    )


def _is_of_data_volume(refusal: Rejection) -> bool:
    return isinstance(refusal.action, CreateObject) and refusal.action.body["kind"] == "DataVolume"


def _delete_target(context: TransferWorld) -> tuple[Action, ...]:
    """Delete a target PVC that has not received the volume, even if it has not been observed yet."""
    namespace, name = context.target
    return (DeleteUnboundClaim(namespace=namespace, name=name, mark=(TRANSFER_UID.key, context.uid)),)


def _free(volume: Volume) -> str:
    return f"""kubectl patch pv {volume.name} --type=json -p '[{{"op": "remove", "path": "/spec/claimRef"}}]'"""


def _remove_finalizers(context: TransferWorld) -> tuple[Action, ...]:
    """Remove all finalizers of this transfer, its own one last: without the transfer the others would stay forever.

    They stay if the transfer has changed since it was observed.
    """
    own = FINALIZER in (context.transfer.metadata.finalizers or ())
    removed = (*_remove_lock(context), *((_own_finalizer(context, present=False),) if own else ()))
    return (_unchanged(context), *removed) if removed else ()


def _remove_lock(context: TransferWorld) -> tuple[Action, ...]:
    claim = context.claim
    if claim is None or not (context.holds(claim) or FINALIZER in (context.transfer.metadata.finalizers or ())):
        return ()  # while the transfer has its own finalizer, the PVC may have one that is not observed yet
    return (replace(_hold(context, claim), present=False),)


# --- lookups ----------------------------------------------------------------------------------------------------


def _volume(context: TransferWorld, record: TransferRecord) -> Volume | None:
    volume = context.objects.volume(record.volume)
    return volume if volume is not None and volume.uid == record.volume_uid else None


def _source(context: TransferWorld, record: TransferRecord) -> PVC | None:
    claim = context.claim
    return claim if claim is not None and claim.uid == record.claim else None


def _target(context: TransferWorld) -> PVC | None:
    claim = context.objects.claim(*context.target)
    return claim if claim is not None and context.is_ours(claim.annotations) else None


# --- actions ----------------------------------------------------------------------------------------------------


def _deletion(context: TransferWorld, record: TransferRecord, source: PVC) -> Step | None:
    """Delete the DataVolume first, and the PVC after it, since the DataVolume would report a lost PVC."""
    dv = context.objects.data_volume(*context.source)
    if dv is not None and record.data_volume and dv.metadata.uid == record.data_volume:
        namespace, name = context.source
        delete = DeleteObject(plural="datavolumes", namespace=namespace, name=name, uid=record.data_volume)
        actions: tuple[Action, ...] = () if dv.metadata.deletion_timestamp is not None else (delete,)
        return running(record, f"deleting DataVolume {place(context.source)} without its volume", *actions)
    if source.deleting:
        return None
    return running(record, f"deleting PVC {place(context.source)} without its volume", DeleteObject.of_claim(source))


def _policy(record: TransferRecord, policy: str, claim: PVC) -> SetReclaimPolicy:
    return SetReclaimPolicy(
        volume=record.volume,
        volume_uid=record.volume_uid,
        policy=policy,
        namespace=claim.namespace,
        claim=claim.name,
        claim_uid=claim.uid,
    )


def _hold(context: TransferWorld, claim: PVC) -> SetFinalizer:
    """Add the finalizer under the observed version, without other transfers' finalizers, so that only one can start."""
    return SetFinalizer(
        plural="persistentvolumeclaims",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        finalizer=lock_finalizer(context.uid),
        present=True,
        version=claim.version,
    )


def _unchanged(context: TransferWorld) -> RequireVersion:
    return RequireVersion.of_object("objecttransfers", context.transfer.metadata)


def _observed(record: TransferRecord, volume: Volume | None) -> RequireVersion:
    return RequireVersion(
        plural="persistentvolumes",
        namespace="",
        name=record.volume,
        uid=record.volume_uid,
        version=volume.version if volume is not None else "",
    )


def _own_finalizer(context: TransferWorld, *, present: bool) -> SetFinalizer:
    return SetFinalizer(
        plural="objecttransfers",
        namespace="",
        name=context.transfer.metadata.name or "",
        uid=context.uid,
        finalizer=FINALIZER,
        present=present,
    )
