"""From a filled prime claim to a target that has its volume, and everything cleared away.

The content is in one PersistentVolume.  A volume is deleted when the claim that its claimRef names goes away, so the
prime claim is removed only once the claimRef names the target:

    filled ── Rebind ── claimRef names the target ─┬─ target Bound
                                                   └─ prime deleted

Each step is told from what is observed, so that it does not matter who did the one before, or how often.
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
    """The target does not have its volume yet."""

    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The content is lost before the target had it."""


def settle(world: World, claim: Claim, ledger: Ledger) -> Rebinding | Gone | Refuse | None:
    """Where the volume of a populated claim is, whose content is complete; None: where it belongs."""
    volume = _filled_volume(world, ledger)
    if claim.phase == "Bound":
        stranded = volume is not None and volume.name != claim.volume_name and _is_primes(volume, ledger)
        if stranded and volume is not None:
            error = ClaimMisbound(
                f"PVC {claim.name} was bound to volume {claim.volume_name}, and its content is in volume {volume.name}",
                where=f"{claim.namespace}/{claim.name}",
            )
            return Refuse.because(error)
        return None
    if volume is not None and volume.claim_uid == claim.uid:
        return Rebinding()
    prime = world.prime if world.prime is not None and world.prime.uid == ledger.claim else None
    if volume is None:
        # Of a claim that is bound there is a volume, even if it has not been seen yet.
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
    """What else is to be known once the prime claim is filled: which volume holds the content.

    That a volume was given to the target says that it was complete, even where the ledger was lost.
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
    """It was handed over to this very claim."""
    return volume.claim_uid == volume.filled_for == claim.uid


def volume_of(world: World, prime: Claim) -> Volume | None:
    """What a prime claim has got, which may be bound to it any moment; None while there is nothing yet."""
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


# --- what is left behind ------------------------------------------------------------------------------------------


def cleared(world: World, claim: Claim, ledger: Ledger, *, final: bool) -> tuple[Action, ...]:
    """Remove what is needed no more: ended workers, the prime claim once its volume is the target's, scratch space.

    `final`: it is done, or failed for good.  What is to be retained stays, and so does the claim that it ran on.
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
    """End this very pod."""
    return StopWorker(claim=pod.claim, namespace=namespace, pod=pod.name, pod_uid=pod.uid)


def released(world: World) -> tuple[Action, ...]:
    """For a claim that is going away: its worker would hold it back."""
    pod = world.worker.pod if world.worker is not None else None
    if pod is None or pod.deleting:
        return ()
    return (stopped(world.datavolume.metadata.namespace or "", pod),)


def _may_go(world: World, claim: Claim, prime: Claim, ledger: Ledger, *, final: bool) -> bool:
    """Whether deleting the prime claim can take nothing along that is wanted."""
    if not ledger.done:
        # It failed for good: what it holds is half an image.
        return final and is_populated(world, claim)
    volume = world.objects.volume(prime.volume_name or ledger.volume)
    if volume is not None:
        # At once, before anybody finds that it lost its volume and says so.
        return volume.claim_uid == claim.uid
    # A claim that is Lost has no volume that could go with it; one that is not has one that was not seen yet.
    return final and (prime.phase == "Lost" or not prime.volume_name)


def replaced(prime: Claim) -> tuple[Action, ...]:
    """A prime claim whose volume was lost before it was filled makes way for another."""
    return () if prime.deleting else (_delete(prime),)


def _delete(claim: Claim) -> DeleteObject:
    return DeleteObject(plural="persistentvolumeclaims", namespace=claim.namespace, name=claim.name, uid=claim.uid)
