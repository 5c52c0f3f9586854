"""What becomes of an ObjectTransfer.

    Pending ── Running ───────────────────────────────────────────────────────────────────────────────────── Complete
    waits      recorded ── target claim ── given up ── source deleted ── claimRef ── bound ── policy ── DataVolume

The content is in one PersistentVolume, which two things keep safe.  It is set to Retain before anything is deleted,
and its claimRef names a claim that is there at every moment: the source's until the volume is given to the target
(`cdi.reconcile.actions.Rebind`, as with prime claims).  For that a finalizer holds the source's claim, deleted as it
is, until the target is bound; and that it is deleted keeps new pods away from it, while Kubernetes' own finalizer says
whether one is left.  Nothing is deleted but by its uid.

What cannot be told from the objects later on is written into ``status.data`` before the first of them is touched.
Until the source is given up, which is written down as well, all of it can be undone: that is what deleting the transfer
does.  From then on it goes on to its end.

Claims, volumes and transfers are seen at different times.  So nothing is lost because one of them is not seen: only a
volume that Kubernetes calls Released has lost its claim.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

from cdi.api.errors import AlreadyExists, CdiError, ClaimLost, ClaimMisbound, InvalidManifest
from cdi.api.phases import Phase, TransferPhase, TransferReason
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    DeleteObject,
    Plan,
    Rebind,
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
    """One step: no I/O, no clock, the same world gives the same plan."""
    ended, leaving = world.phase in _ENDED, world.transfer.metadata.deletion_timestamp is not None
    if world.refusal is not None:
        if leaving and _is_of_data_volume(world.refusal):
            return Plan(actions=_let_go(world))  # it is made after all the rest: the claim has the volume, and stays
        return refused(world, world.refusal)
    if ended or (leaving and world.phase != TransferPhase.RUNNING):
        return Plan(actions=_let_go(world))
    if world.phase != TransferPhase.RUNNING:
        return shown(world, _pending(world))
    record = world.record
    if record is None:
        lost = InvalidManifest(
            "what this transfer has begun is not written down in its status.data",
            remedy="look which PersistentVolume the source's claim had; then delete this ObjectTransfer and create "
            "it again",
        )
        return shown(world, error(lost))
    undone = _undone(world, record) if leaving else None
    return Plan(actions=undone) if undone is not None else shown(world, _running(world, record))


# --- before it begins -------------------------------------------------------------------------------------------


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
            # Whoever deletes the source meanwhile, or the transfer, shall not be held up.
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
    """All of it is looked at once more while nobody else can begin; only then it is written down."""
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
    return moving(record, f"PersistentVolume {found.volume.name} goes to PVC {place(world.target)}")


# --- on the way -------------------------------------------------------------------------------------------------


def _running(world: TransferWorld, record: TransferRecord) -> Step:
    volume = _volume(world, record)
    if volume is None:
        lost = ClaimLost(f"PersistentVolume {record.volume} was deleted by somebody else", remedy="")
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
        # The source cannot be had back, so what is in the way must go.
        message = f"{kind} {place(world.target)} is in the way. Try: delete it; the transfer goes on by itself"
        return stuck(record, taken(world, kind).code, message)
    return _before_hand_over(world, record, volume, source, target)


def _before_hand_over(
    world: TransferWorld, record: TransferRecord, volume: Volume, source: Claim, target: Claim | None
) -> Step:
    """The volume is the source's, and a claim for it at the target's place is to be there before that is touched."""
    if target is None:
        body = world.facts.claim_body(*world.source)
        assert body is not None
        create = CreateObject(body=build_claim(world, body, record))
        return moving(record, f"PVC {place(world.target)} is made", create)
    if target.deleting:
        return moving(record, f"PVC {place(world.target)} is being deleted, and made anew")
    if not source.deleting and not world.holds(source):
        return moving(record, f"PVC {place(world.source)} is held", _hold(world, source))
    users = in_use(world)
    if not source.deleting and users:
        return stuck(record, TransferReason.IN_USE, f"{users}. Try: stop it; the transfer goes on by itself")
    # Not what was seen of the policy counts, which may be old: whoever carries this out looks again, each time.
    kept = _policy(record, RETAIN, source)
    if not record.given_up:
        return moving(replace(record, given_up=True), f"PVC {place(world.source)} is given up", kept)
    deletion = _deletion(world, record, source)
    if deletion is not None:
        return replace(deletion, actions=(kept, *deletion.actions) if deletion.actions else ())
    busy = others(world, source)
    if PROTECTION in source.finalizers or busy:
        why = users or f"PVC {place(world.source)} has the finalizer {', '.join(busy or (PROTECTION,))}"
        message = f"{why}, and its volume is handed over once that ends"
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
    return moving(record, f"PersistentVolume {volume.name} is handed over to PVC {place(world.target)}", kept, rebind)


def _handed_over(world: TransferWorld, record: TransferRecord, volume: Volume, target: Claim) -> Step:
    """The volume is the target's; what is left of the source goes, and everything is as it was."""
    if target.deleting:
        # It is not made so that the volume goes with it.
        message = f"PVC {place(world.target)} is being deleted; PersistentVolume {volume.name} is kept"
        return stuck(record, TransferReason.BEING_DELETED, message)
    if target.phase != "Bound" or volume.phase != "Bound":
        message = f"PVC {place(world.target)} is being bound to PersistentVolume {volume.name}"
        return Step(phase=TransferPhase.RUNNING, reason=TransferReason.BINDING, message=message, record=record)
    source = _source(world, record)
    if source is not None:
        gone = () if source.deleting else (_delete(source),)
        return moving(record, f"PVC {place(world.source)} without its volume goes away", *gone, *_unlocked(world))
    if volume.reclaim != record.reclaim:
        policy = _policy(record, record.reclaim, target)
        return moving(record, f"PersistentVolume {volume.name} is {record.reclaim} again", policy)
    if record.data_volume:
        return _data_volume(world, record, target)
    return complete(_policy(record, record.reclaim, target))


def _data_volume(world: TransferWorld, record: TransferRecord, target: Claim) -> Step:
    where = place(world.target)
    dv = world.objects.data_volume(*world.target)
    if dv is None:
        return moving(record, f"DataVolume {where} is made", CreateObject(body=json.loads(record.body)))
    if not world.is_ours(dv.metadata.annotations):
        other = AlreadyExists(
            f"DataVolume {where} was made by somebody else; PVC {where} has the volume",
            remedy="keep it: it takes over the PVC, which is marked as filled for it",
        )
        return error(other, record)
    phase = (dv.status.phase if dv.status is not None else None) or "new"
    if phase != Phase.SUCCEEDED:
        return moving(record, f"DataVolume {where} is {phase}, and takes over PVC {where}")
    before = world.objects.data_volume(*world.source)
    if before is not None and before.metadata.uid == record.data_volume:
        message = f"DataVolume {place(world.source)} is being deleted"
        return Step(phase=TransferPhase.RUNNING, reason=TransferReason.BEING_DELETED, message=message, record=record)
    return complete(_policy(record, record.reclaim, target))


def _forced(world: TransferWorld, record: TransferRecord, volume: Volume) -> Step:
    """The source is not there any more, though nothing has the volume yet."""
    if volume.phase == "Bound":
        return moving(record, f"PVC {place(world.source)} is not seen, and PersistentVolume {volume.name} is bound")
    lost = ClaimLost(
        f"PVC {place(world.source)} was removed by force before its volume was handed over; {_left(record, volume)}",
        remedy=f"{_free(volume)}; PVC {place(world.target)}, which names it, is bound to it then",
    )
    return error(lost, record)


def _elsewhere(world: TransferWorld, record: TransferRecord, volume: Volume) -> Step:
    """The volume is neither the source's nor that of the claim that is seen at the target's place."""
    target = place(world.target)
    if (volume.claim_namespace, volume.claim_name) == world.target and not occupant(world):
        if volume.phase == "Bound":
            return moving(record, f"PersistentVolume {volume.name} is PVC {target}'s, which is not seen yet")
        gone: CdiError = ClaimLost(
            f"PVC {target} was deleted after it got the volume; {_left(record, volume)}",
            remedy=f"{_free(volume)}, and make a PVC with volumeName {volume.name}",
        )
        return error(gone, record, *_unlocked(world))
    new = f"given to PVC {volume.claim_namespace}/{volume.claim_name}" if volume.claim_name else "freed"
    gone = ClaimMisbound(
        f"PersistentVolume {volume.name} was {new} by others; {_left(record, volume)}",
        remedy="look who did that, and delete this ObjectTransfer",
    )
    return error(gone, record, *_unmade(world))


def _left(record: TransferRecord, volume: Volume) -> str:
    """How a volume is left behind, for whoever puts it in order."""
    before = f", which was {record.reclaim}" if volume.reclaim != record.reclaim else ""
    return f"PersistentVolume {volume.name} is left as it is, its reclaim policy {volume.reclaim}{before}"


# --- back -------------------------------------------------------------------------------------------------------


def _undone(world: TransferWorld, record: TransferRecord) -> tuple[Action, ...] | None:
    """All that brings back what was before; None where it is too late, and the transfer goes on."""
    source, volume = _source(world, record), _volume(world, record)
    if record.given_up or source is None or source.deleting or volume is None or volume.claim_uid != source.uid:
        return None
    return (*_unmade(world), _policy(record, record.reclaim, source), *_let_go(world))


def _is_of_data_volume(refusal: Refusal) -> bool:
    return isinstance(refusal.action, CreateObject) and refusal.action.body["kind"] == "DataVolume"


def _unmade(world: TransferWorld) -> tuple[Action, ...]:
    """A claim that was made for the volume and has not got it.  It may be there and not be seen yet."""
    namespace, name = world.target
    return (WithdrawClaim(namespace=namespace, name=name, mark=(ANN_TRANSFER, world.uid)),)


def _free(volume: Volume) -> str:
    return f"""kubectl patch pv {volume.name} --type=json -p '[{{"op": "remove", "path": "/spec/claimRef"}}]'"""


def _let_go(world: TransferWorld) -> tuple[Action, ...]:
    """Nothing is held by this transfer any more; itself last, since nobody would know of the rest."""
    own = FINALIZER in (world.transfer.metadata.finalizers or ())
    return (*_unlocked(world), *((_own_finalizer(world, present=False),) if own else ()))


def _unlocked(world: TransferWorld) -> tuple[Action, ...]:
    claim = world.claim
    if claim is None or not (world.holds(claim) or FINALIZER in (world.transfer.metadata.finalizers or ())):
        return ()  # as long as the transfer has its own, the claim may have one that is not seen yet
    return (replace(_hold(world, claim), present=False, version=""),)


# --- what is looked up ------------------------------------------------------------------------------------------


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
    """The DataVolume first, and until it is not seen any more: it would call its claim lost."""
    dv = world.objects.data_volume(*world.source)
    if dv is not None and record.data_volume and dv.metadata.uid == record.data_volume:
        namespace, name = world.source
        delete = DeleteObject(plural="datavolumes", namespace=namespace, name=name, uid=record.data_volume)
        actions: tuple[Action, ...] = () if dv.metadata.deletion_timestamp is not None else (delete,)
        return moving(record, f"DataVolume {place(world.source)} is deleted, without its volume", *actions)
    if source.deleting:
        return None
    return moving(record, f"PVC {place(world.source)} is deleted, without its volume", _delete(source))


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
    """Under the version that was seen, in which no other transfer held it: of several that begin at once, one does."""
    return SetFinalizer(
        plural="persistentvolumeclaims",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        finalizer=lock(world.uid),
        present=True,
        version=claim.version,
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
