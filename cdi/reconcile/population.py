"""Rebinding of a filled volume from the prime PVC to the target, and cleanup.

The content is in one PersistentVolume. A volume is deleted with the PVC that its claimRef names, so the prime PVC is
deleted only once the claimRef names the target:

    filled ── Rebind ── claimRef names the target ─┬─ target Bound
                                                   └─ prime deleted

Each step is derived from observed state only, so it does not matter which process did the previous step, or how often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cdi.api.errors import ClaimMisbound
from cdi.reconcile.actions import Action, DeleteObject, Rebind, StopWorker
from cdi.reconcile.binding import filled_claim, is_populated
from cdi.reconcile.clone.record import stand_in
from cdi.reconcile.ledger import Ledger
from cdi.reconcile.origin import Refuse
from cdi.reconcile.pod import retains
from cdi.reconcile.uploading import withdrawn
from cdi.reconcile.world import WITHOUT_CLAIM, Claim, Pod, Volume, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebinding:
    """The state before the target is bound to its volume."""

    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The state in which the content was lost before the target was bound to it."""


def settle(world: World, claim: Claim, ledger: Ledger) -> Rebinding | Gone | Refuse | None:
    """Return the state of rebinding a PVC whose content is complete; None if it is bound to the right volume."""
    volume = _filled_volume(world, ledger)
    if claim.phase == "Bound":
        stranded = volume is not None and volume.name != claim.volume_name and _is_primes(volume, ledger)
        if stranded and volume is not None:
            error = ClaimMisbound(
                f"PVC {claim.name} was bound to volume {claim.volume_name}, but its content is in volume {volume.name}",
                where=f"{claim.namespace}/{claim.name}",
            )
            return Refuse.because(error)
        return None
    if volume is not None and volume.claim_uid == claim.uid:
        return Rebinding()
    prime = world.prime if world.prime is not None and world.prime.uid == ledger.claim else None
    if volume is None:
        # If the prime PVC is bound, its volume exists even if it has not been observed yet.
        return Rebinding() if prime is not None and prime.phase == "Bound" and not prime.deleting else Gone()
    if not _is_primes(volume, ledger) or volume.phase in WITHOUT_CLAIM:
        return Gone()
    namespace, name = stand_in(claim)
    rebind = Rebind(
        volume=volume.name,
        volume_uid=volume.uid,
        namespace=claim.namespace,
        prime=name,
        prime_uid=ledger.claim,
        target=claim.name,
        target_uid=claim.uid,
        prime_namespace="" if namespace == claim.namespace else namespace,
    )
    return Rebinding(actions=(rebind,))


def seal(world: World, claim: Claim, ledger: Ledger) -> Ledger:
    """Return the ledger with the volume that holds the content, once the prime PVC is filled.

    A volume that was rebound to the target was complete, so this is recovered even if the ledger was lost.
    """
    if ledger.done and ledger.volume:
        return ledger
    given = [one for one in world.objects.volumes_for(claim.namespace, claim.name) if _is_given(one, claim)]
    if given:
        return replace(ledger, done=True, failure=None, volume=given[0].name)
    prime = world.prime
    if prime is None or not prime.volume_name:
        return ledger
    if not ledger.done:
        volume = world.objects.volume(prime.volume_name)
        if volume is None or volume.claim_uid != claim.uid:
            return ledger
    return ledger.held_by(prime, prime.volume_name)


def _is_given(volume: Volume, claim: Claim) -> bool:
    """Return whether the volume was handed over to this very PVC."""
    return volume.claim_uid == volume.filled_for == claim.uid


def volume_of(world: World, prime: Claim) -> Volume | None:
    """Return the volume that a prime PVC is bound to or about to be bound to; None if there is none yet."""
    if prime.volume_name:
        return world.objects.volume(prime.volume_name)
    made = world.objects.volumes_for(prime.namespace, prime.name)
    return next(
        (one for one in made if one.claim_uid == prime.uid and not one.deleting and one.phase not in WITHOUT_CLAIM),
        None,
    )


def _filled_volume(world: World, ledger: Ledger) -> Volume | None:
    name = ledger.volume
    if not name and world.prime is not None and world.prime.uid == ledger.claim:
        name = world.prime.volume_name
    return world.objects.volume(name) if name else None


def _is_primes(volume: Volume, ledger: Ledger) -> bool:
    return volume.claim_uid == ledger.claim


# --- cleanup ------------------------------------------------------------------------------------------------------


def cleared(world: World, claim: Claim, ledger: Ledger, *, final: bool) -> tuple[Action, ...]:
    """Return the actions that remove ended workers, scratch space, and the prime PVC once its volume is the target's.

    Args:
        world: The observed state.
        claim: The target PVC.
        ledger: Its ledger.
        final: Whether the operation succeeded or failed for good. A pod that is to be retained stays, and so does the
            PVC that it used.

    """
    if not world.platform.cluster:
        return ()
    worker, kept = world.worker, (final or ledger.done) and retains(world.datavolume, claim)
    actions: list[Action] = []
    pod = worker.pod if worker is not None else None
    if (
        worker is not None
        and pod is not None
        and not pod.deleting
        and not (kept and not worker.running)
        and worker.attempt <= ledger.attempt
    ):
        actions.append(stopped(claim.namespace, pod))
    if final:
        actions.extend(withdrawn(world, filled_claim(world, claim)))
        if world.scratch is not None and not world.scratch.deleting and not (kept and pod is not None):
            actions.append(_delete(world.scratch))
    prime = world.prime
    if prime is not None and not prime.deleting and not kept and _may_go(world, claim, prime, ledger, final=final):
        actions.append(_delete(prime))
    return tuple(actions)


def stopped(namespace: str, pod: Pod) -> StopWorker:
    """Stop exactly this pod."""
    return StopWorker(claim=pod.claim, namespace=namespace, pod=pod.name, pod_uid=pod.uid)


def released(world: World) -> tuple[Action, ...]:
    """Stop the worker of a PVC that is being deleted, since the pod would delay the deletion."""
    pod = world.worker.pod if world.worker is not None else None
    if pod is None or pod.deleting:
        return ()
    return (stopped(world.datavolume.metadata.namespace or "", pod),)


def _may_go(world: World, claim: Claim, prime: Claim, ledger: Ledger, *, final: bool) -> bool:
    """Return whether deleting the prime PVC loses no content that is needed."""
    if not ledger.done:
        # It failed for good: the content is incomplete.
        return final and is_populated(world, claim)
    volume = world.objects.volume(prime.volume_name or ledger.volume)
    if volume is not None:
        # Delete it at once, before it is marked as Lost and events about that are recorded.
        return volume.claim_uid == claim.uid
    # A Lost PVC has no volume that could be deleted with it; any other has one that may not have been observed yet.
    return final and (prime.phase == "Lost" or not prime.volume_name)


def replaced(prime: Claim) -> tuple[Action, ...]:
    """Delete a prime PVC whose volume was lost before it was filled, so that it is recreated."""
    return () if prime.deleting else (_delete(prime),)


def _delete(claim: Claim) -> DeleteObject:
    return DeleteObject(plural="persistentvolumeclaims", namespace=claim.namespace, name=claim.name, uid=claim.uid)
