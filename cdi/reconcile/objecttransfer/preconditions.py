"""Preconditions of a transfer.

Nothing of the source is changed before they are met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cdi.api.annotations import TRANSFER_UID
from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, InvalidManifest
from cdi.api.meta import OwnerReference
from cdi.api.names import ANN_CLONE_REQUEST, ANN_ENDPOINT, ANN_POD_PHASE, ANN_SOURCE, ANN_UPLOAD_TARGET
from cdi.api.phases import Phase, TransferReason
from cdi.api.rules.transfer import check_transfer
from cdi.reconcile.objecttransfer.context import TransferWorld, place
from cdi.reconcile.objecttransfer.record import FINALIZER, lock_finalizer
from cdi.reconcile.source import unpopulated_reason
from cdi.reconcile.types import PVC, Pending, Rejected, Volume

PROTECTION: Final = "kubernetes.io/pvc-protection"
"""Finalizer of every PVC; Kubernetes removes it once the PVC is deleted and no pod uses it."""
_ASKING: Final = (ANN_ENDPOINT, ANN_SOURCE, ANN_UPLOAD_TARGET, ANN_CLONE_REQUEST)
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The objects of a transfer that can start."""

    claim: PVC
    volume: Volume
    data_volume: DataVolume | None
    """The DataVolume to move; None if only a PVC is moved."""


def check(context: TransferWorld) -> Ready | Pending | Rejected:
    """Check all preconditions; return the objects to move, what to wait for, or the final failure."""
    problems = list(check_transfer(context.transfer))
    if problems:
        return Rejected.because(InvalidManifest("; ".join(map(str, problems)), where="spec"))
    return _occupied(context) or _examined(context)


def target_conflict(context: TransferWorld) -> str:
    """Return the kind of an object with the target's name that this transfer did not create; empty if there is none."""
    claim, dv = context.objects.claim(*context.target), context.objects.data_volume(*context.target)
    if dv is not None and not context.is_ours(dv.metadata.annotations):
        return "DataVolume"
    return "PVC" if claim is not None and not context.is_ours(claim.annotations) else ""


def conflict_error(context: TransferWorld, kind: str) -> AlreadyExists:
    """Return the error for a target name that is in use."""
    return AlreadyExists(
        f"{kind} {place(context.target)} already exists",
        remedy="delete it, or choose another target; then delete this ObjectTransfer and create it again",
    )


def in_use(context: TransferWorld) -> str:
    """Return a text about the pods that use the source's volume; empty if there are none."""
    pods = context.facts.pods_using(*context.source)
    if not pods:
        return ""
    more = f" and {len(pods) - _SHOWN} more" if len(pods) > _SHOWN else ""
    kind = "DataVolume PVC" if context.moves_data_volume else "PVC"
    return f"Pods using {kind}: PVC {place(context.source)} is in use by pod {', '.join(pods[:_SHOWN])}{more}"


def foreign_finalizers(context: TransferWorld, claim: PVC) -> tuple[str, ...]:
    """Return the finalizers of other controllers on a PVC, which show that the PVC is in use."""
    return tuple(one for one in claim.finalizers if one not in (PROTECTION, lock_finalizer(context.uid)))


def _occupied(context: TransferWorld) -> Pending | Rejected | None:
    kind = target_conflict(context)
    if not kind:
        return None
    claim, dv = context.objects.claim(*context.target), context.objects.data_volume(*context.target)
    going = claim.deleting if kind == "PVC" and claim is not None else dv is not None and dv.metadata.deletion_timestamp
    if going:
        message = f"{kind} {place(context.target)} is being deleted; the transfer starts afterwards"
        return Pending(reason=TransferReason.BEING_DELETED, message=message)
    return Rejected.because(conflict_error(context, kind))


def _examined(context: TransferWorld) -> Ready | Pending:
    where, dv = place(context.source), None
    if context.moves_data_volume:
        dv = context.objects.data_volume(*context.source)
        waiting = _missing(f"DataVolume {where}") if dv is None else _not_movable(context, dv)
        if waiting is not None:
            return waiting
    claim = context.claim
    if claim is None:
        return _missing(f"PVC {where}")
    if dv is None:
        waiting = _unlike(context, claim.annotations, "PVC") or _owned(claim, where)
    elif claim.controller_uid != dv.metadata.uid:
        waiting = Pending(reason=TransferReason.OWNED, message=f"PVC {where} is not owned by DataVolume {where}")
    waiting = waiting or _blocked_by(context, claim)
    if waiting is not None:
        return waiting
    volume = context.objects.volume(claim.volume_name)
    if volume is None or volume.claim_uid != claim.uid or volume.phase != "Bound" or volume.deleting:
        message = f"PersistentVolume {claim.volume_name} of PVC {where} is not bound to it, or is being deleted"
        return Pending(reason=TransferReason.NOT_BOUND, message=message)
    return Ready(claim=claim, volume=volume, data_volume=dv)


def _not_movable(context: TransferWorld, dv: DataVolume) -> Pending | None:
    where = place(context.source)
    if dv.metadata.deletion_timestamp is not None:
        return Pending(reason=TransferReason.BEING_DELETED, message=f"DataVolume {where} is being deleted")
    owner = _controller(dv.metadata.owner_references or ())
    if owner is not None:
        return Pending(
            reason=TransferReason.OWNED,
            message=f"DataVolume {where} is controlled by {owner.kind} {owner.name}, which would recreate it. "
            f"Try: kubectl delete {(owner.kind or '').lower()} {owner.name} -n {context.source[0]} --cascade=orphan",
        )
    unlike = _unlike(context, dv.metadata.annotations or {}, "DataVolume")
    phase = (dv.status.phase if dv.status is not None else None) or "new"
    if unlike is not None or phase == Phase.SUCCEEDED:
        return unlike
    return Pending(
        reason=TransferReason.NOT_POPULATED,
        message=f"DataVolume {where} is {phase}; it is moved when it is {Phase.SUCCEEDED}",
    )


def _blocked_by(context: TransferWorld, claim: PVC) -> Pending | None:
    """Return what to wait for if the PVC is in use or not ready."""
    where = place(context.source)
    if claim.deleting:
        return Pending(reason=TransferReason.BEING_DELETED, message=f"PVC {where} is being deleted")
    if claim.phase != "Bound" or not claim.volume_name:
        return Pending(reason=TransferReason.NOT_BOUND, message=f"PVC {where} is {claim.phase}, not Bound")
    unfilled = unpopulated_reason(claim, context.objects)
    if unfilled is None and ANN_POD_PHASE not in claim.annotations and any(one in claim.annotations for one in _ASKING):
        # The DataVolume's phase covers its PVC; this one was annotated by a user and has not been reconciled yet.
        unfilled = None if claim.controller_uid else "its annotations have not been reconciled yet"
    if unfilled is not None:
        return Pending(reason=TransferReason.NOT_POPULATED, message=f"PVC {where} is not populated: {unfilled}")
    if claim.requested is not None and claim.capacity is not None and claim.requested > claim.capacity:
        # The filesystem would stay small: after static binding nothing expands it.
        message = f"PVC {where} is being expanded. Try: start a pod that mounts it, if the driver waits for one"
        return Pending(reason=TransferReason.RESIZING, message=message)
    arriving = context.facts.unfinished(TRANSFER_UID.read(claim.annotations) or "")
    if arriving:
        message = f"PVC {where} is the target of ObjectTransfer {arriving}, which is running"
        return Pending(reason=TransferReason.IN_USE, message=message)
    users = in_use(context)
    if users:
        message = f"{users}. Try: stop it; the transfer continues automatically"
        return Pending(reason=TransferReason.IN_USE, message=message, event=TransferReason.IN_USE)
    busy = foreign_finalizers(context, claim)
    if not busy:
        return None
    if any(one.startswith(FINALIZER) for one in busy):
        message = (
            f"Source in use by another transfer: PVC {where} is being moved by another ObjectTransfer. Try: wait until "
            "that is Complete; if there is none, remove the finalizer "
            f"{next(one for one in busy if one.startswith(FINALIZER))}"
        )
    else:
        message = (
            f"PVC has finalizer: {', '.join(busy)}: PVC {where} is in use; another controller set it, for example to "
            "clone it"
        )
    return Pending(reason=TransferReason.IN_USE, message=message, event=TransferReason.IN_USE)


def _owned(claim: PVC, where: str) -> Pending | None:
    if not claim.controller_uid:
        return None
    owner, name = claim.controller_kind, claim.controller_name
    remedy = "move the DataVolume" if owner == "DataVolume" else "wait until that is deleted"
    return Pending(
        reason=TransferReason.OWNED,
        message=f"PVC {where} is controlled by {owner} {name}, which needs it. Try: {remedy}",
    )


def _unlike(context: TransferWorld, annotations: Mapping[str, str], kind: str) -> Pending | None:
    required = context.transfer.spec.source.required_annotations or {}
    missing = sorted(f"{name}: {text}" for name, text in required.items() if annotations.get(name) != text)
    if not missing:
        return None
    message = f"{kind} {place(context.source)} does not have the required annotation {', '.join(missing)}"
    return Pending(reason=TransferReason.ANNOTATIONS_MISSING, message=message)


def _missing(what: str) -> Pending:
    message = f"{what} does not exist. Try: create it; the transfer starts automatically"
    return Pending(reason=TransferReason.NO_SOURCE, message=message)


def _controller(owners: Iterable[OwnerReference]) -> OwnerReference | None:
    return next((one for one in owners if one.controller), None)
