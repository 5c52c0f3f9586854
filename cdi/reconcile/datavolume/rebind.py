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
from cdi.reconcile.actions import Action, DeleteObject, RebindVolume, StopWorker
from cdi.reconcile.clone.plan_annotation import temporary_pvc
from cdi.reconcile.context import Lister, ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.provisioning import is_populated, worker_claim
from cdi.reconcile.datavolume.upload_server import delete_service
from cdi.reconcile.pods.builder import retains_after_completion
from cdi.reconcile.pods.types import Pod, Worker
from cdi.reconcile.types import PVC, WITHOUT_CLAIM, Rejected, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebinding:
    """The state before the target is bound to its volume."""

    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLost:
    """The state in which the content was lost before the target was bound to it."""


def rebind_state(
    context: ReconcileContext, claim: PVC, attempts: AttemptHistory
) -> Rebinding | VolumeLost | Rejected | None:
    """Return the state of rebinding a PVC whose content is complete; None if it is bound to the right volume."""
    volume = _filled_volume(context, attempts)
    if claim.phase == "Bound":
        stranded = volume is not None and volume.name != claim.volume_name and _belongs_to_prime(volume, attempts)
        if stranded and volume is not None:
            error = ClaimMisbound(
                f"PVC {claim.name} was bound to volume {claim.volume_name}, but its content is in volume {volume.name}",
                where=f"{claim.namespace}/{claim.name}",
            )
            return Rejected.because(error)
        return None
    if volume is not None and volume.claim_uid == claim.uid:
        return Rebinding()
    if volume is None:
        # A worker runs only once its prime PVC is bound, so while that PVC exists its volume does, even if neither the
        # volume nor the binding has been observed yet.
        prime = context.prime
        kept = prime is not None and attempts.claim in ("", prime.uid) and prime.phase != "Lost" and not prime.deleting
        return Rebinding() if kept else VolumeLost()
    if not _belongs_to_prime(volume, attempts) or volume.phase in WITHOUT_CLAIM:
        return VolumeLost()
    namespace, name = temporary_pvc(claim)
    rebind = RebindVolume(
        volume=volume.name,
        volume_uid=volume.uid,
        namespace=claim.namespace,
        prime=name,
        prime_uid=attempts.claim,
        target=claim.name,
        target_uid=claim.uid,
        prime_namespace="" if namespace == claim.namespace else namespace,
    )
    return Rebinding(actions=(rebind,))


def mark_populated(context: ReconcileContext, claim: PVC, attempts: AttemptHistory) -> AttemptHistory:
    """Return the attempt history with the volume that holds the content, once the prime PVC is filled.

    A volume that was rebound to the target was complete, so this is recovered even if the attempt history was lost.
    """
    if attempts.done and attempts.volume:
        return attempts
    given = [one for one in context.objects.volumes_for(claim.namespace, claim.name) if _is_given(one, claim)]
    if given:
        return replace(attempts, done=True, failure=None, volume=given[0].name)
    prime = context.prime
    if prime is None or not prime.volume_name:
        return attempts
    if not attempts.done:
        volume = context.objects.volume(prime.volume_name)
        if volume is None or volume.claim_uid != claim.uid:
            return attempts
    return attempts.completed_in(prime, prime.volume_name)


def _is_given(volume: Volume, claim: PVC) -> bool:
    """Return whether the volume was handed over to this very PVC."""
    return volume.claim_uid == volume.filled_for == claim.uid


def volume_of(objects: Lister, prime: PVC) -> Volume | None:
    """Return the volume that a prime PVC is bound to or about to be bound to; None if there is none yet."""
    if prime.volume_name:
        return objects.volume(prime.volume_name)
    made = objects.volumes_for(prime.namespace, prime.name)
    return next(
        (one for one in made if one.claim_uid == prime.uid and not one.deleting and one.phase not in WITHOUT_CLAIM),
        None,
    )


def _filled_volume(context: ReconcileContext, attempts: AttemptHistory) -> Volume | None:
    name = attempts.volume
    if not name and context.prime is not None and context.prime.uid == attempts.claim:
        name = context.prime.volume_name
    return context.objects.volume(name) if name else None


def _belongs_to_prime(volume: Volume, attempts: AttemptHistory) -> bool:
    return volume.claim_uid == attempts.claim


# --- cleanup ------------------------------------------------------------------------------------------------------


def cleanup_actions(
    context: ReconcileContext, claim: PVC, attempts: AttemptHistory, *, final: bool, restarts: bool = False
) -> tuple[Action, ...]:
    """Return the actions that remove ended workers, scratch space, and the prime PVC once its volume is the target's.

    Args:
        context: The observed state.
        claim: The target PVC.
        attempts: Its attempt history.
        final: Whether the operation succeeded or failed for good. A pod that is to be retained stays, and so does the
            PVC that it used.
        restarts: Whether the kubelet restarts the container of the worker's pod for the next attempt.

    """
    if not context.platform.cluster:
        return ()
    worker, kept = context.worker, (final or attempts.done) and retains_after_completion(context.datavolume, claim)
    actions: list[Action] = []
    pod = worker.pod if worker is not None else None
    if (
        worker is not None
        and pod is not None
        and not pod.deleting
        and not restarts
        and not (kept and _rests(worker, attempts))
        and (worker.attempt <= attempts.attempt or (pod.restarted and attempts.failure is not None))
    ):
        actions.append(stopped(claim.namespace, pod))
    if final:
        actions.extend(delete_service(context.service, worker_claim(context, claim)))
        if context.scratch is not None and not context.scratch.deleting and not (kept and pod is not None):
            actions.append(DeleteObject.of_claim(context.scratch))
    prime = context.prime
    if (
        prime is not None
        and not prime.deleting
        and not kept
        and _safe_to_delete(context, claim, prime, attempts, final=final)
    ):
        actions.append(DeleteObject.of_claim(prime))
    return tuple(actions)


def _rests(worker: Worker, attempts: AttemptHistory) -> bool:
    """Return whether the worker's pod does nothing more, even if the kubelet restarts its container.

    After a failure that is final whatever changes, a restarted worker only repeats its termination message
    (`cdi.worker.pod`).
    """
    if worker.pod is not None and worker.pod.restarts and not attempts.done:
        return attempts.failure is not None and attempts.failure.needs_new_pod
    return not worker.running


def stopped(namespace: str, pod: Pod) -> StopWorker:
    """Stop exactly this pod."""
    return StopWorker(claim=pod.claim, namespace=namespace, pod=pod.name, pod_uid=pod.uid)


def release_worker(context: ReconcileContext) -> tuple[Action, ...]:
    """Stop the worker of a PVC that is not to be filled, or is being deleted, which the pod would delay."""
    pod = context.worker.pod if context.worker is not None else None
    if pod is None or pod.deleting:
        return ()
    return (stopped(context.datavolume.metadata.namespace or "", pod),)


def _safe_to_delete(
    context: ReconcileContext, claim: PVC, prime: PVC, attempts: AttemptHistory, *, final: bool
) -> bool:
    """Return whether deleting the prime PVC loses no content that is needed."""
    if not attempts.done:
        # It failed for good: the content is incomplete.
        return final and is_populated(context.platform, claim)
    volume = context.objects.volume(prime.volume_name or attempts.volume)
    if volume is not None:
        # Delete it at once, before it is marked as Lost and events about that are recorded.
        return volume.claim_uid == claim.uid
    # A Lost PVC has no volume that could be deleted with it; any other has one that may not have been observed yet.
    return final and (prime.phase == "Lost" or not prime.volume_name)


def recreate_prime(prime: PVC) -> tuple[Action, ...]:
    """Delete a prime PVC whose volume was lost before it was filled, so that it is recreated."""
    return () if prime.deleting else (DeleteObject.of_claim(prime),)
