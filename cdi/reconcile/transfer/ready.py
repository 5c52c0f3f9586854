"""Preconditions of a transfer.

Nothing of the source is changed before they are met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, InvalidManifest
from cdi.api.meta import OwnerReference
from cdi.api.names import ANN_CLONE_REQUEST, ANN_ENDPOINT, ANN_POD_PHASE, ANN_SOURCE, ANN_UPLOAD_TARGET
from cdi.api.phases import Phase, TransferReason
from cdi.api.rules.transfer import check_transfer
from cdi.reconcile.origin import Refuse, Wait, populating
from cdi.reconcile.transfer.record import ANN_TRANSFER, FINALIZER, lock
from cdi.reconcile.transfer.world import TransferWorld, place
from cdi.reconcile.world import Claim, Volume

PROTECTION: Final = "kubernetes.io/pvc-protection"
"""Finalizer of every PVC; Kubernetes removes it once the PVC is deleted and no pod uses it."""
_ASKING: Final = (ANN_ENDPOINT, ANN_SOURCE, ANN_UPLOAD_TARGET, ANN_CLONE_REQUEST)
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The objects of a transfer that can start."""

    claim: Claim
    volume: Volume
    data_volume: DataVolume | None
    """The DataVolume to move; None if only a PVC is moved."""


def examine(world: TransferWorld) -> Ready | Wait | Refuse:
    """Check all preconditions; return the objects to move, what to wait for, or the final failure."""
    problems = list(check_transfer(world.transfer))
    if problems:
        return Refuse.because(InvalidManifest("; ".join(map(str, problems)), where="spec"))
    return _occupied(world) or _examined(world)


def occupant(world: TransferWorld) -> str:
    """Return the kind of an object with the target's name that this transfer did not create; empty if there is none."""
    claim, dv = world.objects.claim(*world.target), world.objects.data_volume(*world.target)
    if dv is not None and not world.is_ours(dv.metadata.annotations):
        return "DataVolume"
    return "PVC" if claim is not None and not world.is_ours(claim.annotations) else ""


def taken(world: TransferWorld, kind: str) -> AlreadyExists:
    """Return the error for a target name that is in use."""
    return AlreadyExists(
        f"{kind} {place(world.target)} already exists",
        remedy="delete it, or choose another target; then delete this ObjectTransfer and create it again",
    )


def in_use(world: TransferWorld) -> str:
    """Return a text about the pods that use the source's volume; empty if there are none."""
    pods = world.facts.holders(*world.source)
    if not pods:
        return ""
    more = f" and {len(pods) - _SHOWN} more" if len(pods) > _SHOWN else ""
    return f"PVC {place(world.source)} is in use by pod {', '.join(pods[:_SHOWN])}{more}"


def others(world: TransferWorld, claim: Claim) -> tuple[str, ...]:
    """Return the finalizers of other controllers on a PVC, which show that the PVC is in use."""
    return tuple(one for one in claim.finalizers if one not in (PROTECTION, lock(world.uid)))


def _occupied(world: TransferWorld) -> Wait | Refuse | None:
    kind = occupant(world)
    if not kind:
        return None
    claim, dv = world.objects.claim(*world.target), world.objects.data_volume(*world.target)
    going = claim.deleting if kind == "PVC" and claim is not None else dv is not None and dv.metadata.deletion_timestamp
    if going:
        message = f"{kind} {place(world.target)} is being deleted; the transfer starts afterwards"
        return Wait(reason=TransferReason.BEING_DELETED, message=message)
    return Refuse.because(taken(world, kind))


def _examined(world: TransferWorld) -> Ready | Wait:
    where, dv = place(world.source), None
    if world.moves_data_volume:
        dv = world.objects.data_volume(*world.source)
        waiting = _missing(f"DataVolume {where}") if dv is None else _not_movable(world, dv)
        if waiting is not None:
            return waiting
    claim = world.claim
    if claim is None:
        return _missing(f"PVC {where}")
    if dv is None:
        waiting = _unlike(world, claim.annotations, "PVC") or _owned(claim, where)
    elif claim.controller_uid != dv.metadata.uid:
        waiting = Wait(reason=TransferReason.OWNED, message=f"PVC {where} is not owned by DataVolume {where}")
    waiting = waiting or _busy(world, claim)
    if waiting is not None:
        return waiting
    volume = world.objects.volume(claim.volume_name)
    if volume is None or volume.claim_uid != claim.uid or volume.phase != "Bound" or volume.deleting:
        message = f"PersistentVolume {claim.volume_name} of PVC {where} is not bound to it, or is being deleted"
        return Wait(reason=TransferReason.NOT_BOUND, message=message)
    return Ready(claim=claim, volume=volume, data_volume=dv)


def _not_movable(world: TransferWorld, dv: DataVolume) -> Wait | None:
    where = place(world.source)
    if dv.metadata.deletion_timestamp is not None:
        return Wait(reason=TransferReason.BEING_DELETED, message=f"DataVolume {where} is being deleted")
    owner = _controller(dv.metadata.owner_references or ())
    if owner is not None:
        return Wait(
            reason=TransferReason.OWNED,
            message=f"DataVolume {where} is controlled by {owner.kind} {owner.name}, which would recreate it. "
            f"Try: kubectl delete {(owner.kind or '').lower()} {owner.name} -n {world.source[0]} --cascade=orphan",
        )
    unlike = _unlike(world, dv.metadata.annotations or {}, "DataVolume")
    phase = (dv.status.phase if dv.status is not None else None) or "new"
    if unlike is not None or phase == Phase.SUCCEEDED:
        return unlike
    return Wait(
        reason=TransferReason.NOT_POPULATED,
        message=f"DataVolume {where} is {phase}; it is moved when it is {Phase.SUCCEEDED}",
    )


def _busy(world: TransferWorld, claim: Claim) -> Wait | None:
    """Return what to wait for if the PVC is in use or not ready."""
    where = place(world.source)
    if claim.deleting:
        return Wait(reason=TransferReason.BEING_DELETED, message=f"PVC {where} is being deleted")
    if claim.phase != "Bound" or not claim.volume_name:
        return Wait(reason=TransferReason.NOT_BOUND, message=f"PVC {where} is {claim.phase}, not Bound")
    unfilled = populating(claim, world.objects)
    if unfilled is None and ANN_POD_PHASE not in claim.annotations and any(one in claim.annotations for one in _ASKING):
        # The DataVolume's phase covers its PVC; this one was annotated by a user and has not been reconciled yet.
        unfilled = None if claim.controller_uid else "its annotations have not been reconciled yet"
    if unfilled is not None:
        return Wait(reason=TransferReason.NOT_POPULATED, message=f"PVC {where} is not populated: {unfilled}")
    if claim.requested is not None and claim.capacity is not None and claim.requested > claim.capacity:
        # The filesystem would stay small: after static binding nothing expands it.
        message = f"PVC {where} is being expanded. Try: start a pod that mounts it, if the driver waits for one"
        return Wait(reason=TransferReason.RESIZING, message=message)
    arriving = world.facts.unfinished(claim.annotations.get(ANN_TRANSFER, ""))
    if arriving:
        message = f"PVC {where} is the target of ObjectTransfer {arriving}, which is running"
        return Wait(reason=TransferReason.IN_USE, message=message)
    users = in_use(world)
    if users:
        message = f"{users}. Try: stop it; the transfer continues automatically"
        return Wait(reason=TransferReason.IN_USE, message=message, event=TransferReason.IN_USE)
    busy = others(world, claim)
    if not busy:
        return None
    if any(one.startswith(FINALIZER) for one in busy):
        message = (
            f"PVC {where} is being moved by another ObjectTransfer. Try: wait until that is Complete; if there is "
            f"none, remove the finalizer {next(one for one in busy if one.startswith(FINALIZER))}"
        )
    else:
        message = (
            f"PVC {where} is in use: another controller set the finalizer {', '.join(busy)}, for example to clone it"
        )
    return Wait(reason=TransferReason.IN_USE, message=message, event=TransferReason.IN_USE)


def _owned(claim: Claim, where: str) -> Wait | None:
    if not claim.controller_uid:
        return None
    owner, name = claim.controller_kind, claim.controller_name
    remedy = "move the DataVolume" if owner == "DataVolume" else "wait until that is deleted"
    return Wait(
        reason=TransferReason.OWNED,
        message=f"PVC {where} is controlled by {owner} {name}, which needs it. Try: {remedy}",
    )


def _unlike(world: TransferWorld, annotations: Mapping[str, str], kind: str) -> Wait | None:
    required = world.transfer.spec.source.required_annotations or {}
    missing = sorted(f"{name}: {text}" for name, text in required.items() if annotations.get(name) != text)
    if not missing:
        return None
    message = f"{kind} {place(world.source)} does not have the required annotation {', '.join(missing)}"
    return Wait(reason=TransferReason.ANNOTATIONS_MISSING, message=message)


def _missing(what: str) -> Wait:
    message = f"{what} does not exist. Try: create it; the transfer starts automatically"
    return Wait(reason=TransferReason.NO_SOURCE, message=message)


def _controller(owners: Iterable[OwnerReference]) -> OwnerReference | None:
    return next((one for one in owners if one.controller), None)
