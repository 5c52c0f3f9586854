"""Cluster-only decisions: prime PVCs, scratch space, worker pods, and the annotations that show them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cdi.api.copy import CopyTargetJob
from cdi.api.errors import ClaimMisbound, InvalidManifest
from cdi.api.job import Limits
from cdi.api.names import (
    ANN_BOUND_CONDITION,
    ANN_BOUND_CONDITION_MESSAGE,
    ANN_BOUND_CONDITION_REASON,
    ANN_IMPORT_FATAL_ERROR,
    ANN_POPULATOR_PROGRESS,
    ANN_PVC_PRIME,
    ANN_REQUIRES_SCRATCH,
    ANN_USE_POPULATOR,
    prime_claim,
)
from cdi.api.phases import EventReason, Phase, Reason
from cdi.api.policy import read_knobs
from cdi.reconcile.actions import Action, CreateObject, EventFact, PatchObject, StartWorker
from cdi.reconcile.binding import filled_claim, is_populated, standstill
from cdi.reconcile.claim import build_prime, build_scratch
from cdi.reconcile.clone.copying import before_target, reader_marks, target_pod
from cdi.reconcile.clone.record import by_storage, stand_in
from cdi.reconcile.clone.shown import clone_marks
from cdi.reconcile.decision import Decision, bound_aspect, failed, operation_of, pending, progress_of, succeeded
from cdi.reconcile.failure import as_failure
from cdi.reconcile.job import Prepared
from cdi.reconcile.ledger import Ledger
from cdi.reconcile.origin import External, Refuse, Wait, find_origin
from cdi.reconcile.pod import ANN_LIMITS, ANN_SPEC, Attempt, build_pod, copies, pod_layout
from cdi.reconcile.pod_facts import NODE_LOST
from cdi.reconcile.population import replaced, stopped
from cdi.reconcile.retrying import SCRATCH_NEEDED
from cdi.reconcile.status import State, no
from cdi.reconcile.synthesis import ANN_STATUS
from cdi.reconcile.uploading import before_server, server_pod, takes_upload, upload_marks
from cdi.reconcile.world import Claim, Pod, Worker, World


def before_filling(world: World, claim: Claim) -> Decision | None:
    """Return the decision that applies until a worker can be given a volume; None if one can start."""
    origin = find_origin(world)
    if isinstance(origin, Refuse):
        return failed(claim, origin.failure)
    if isinstance(origin, External):
        return _filled_by_others(world, claim)
    populated, prime = is_populated(world, claim), world.prime
    if claim.phase == "Bound":
        return failed(claim, as_failure(_misbound(claim))) if populated else None
    if populated and prime is not None and (prime.deleting or prime.phase == "Lost"):
        wait = Wait(reason=Reason.PENDING, message=f"PVC {prime.name} lost its PersistentVolume; recreating it")
        return replace(pending(claim, wait), actions=replaced(prime))
    still = standstill(world, claim)
    if still is not None:
        return pending(claim, still.wait, still.phase)
    if populated and prime is None:
        wait = Wait(
            reason=Reason.PENDING,
            message=f"creating the temporary PVC {prime_claim(claim.uid)}, which is populated first",
        )
        made = EventFact(
            type="Normal", reason=EventReason.CREATED_PVC_PRIME, message=f"PVC {prime_claim(claim.uid)} created"
        )
        decision = replace(pending(claim, wait), events=(made,))
        return replace(decision, actions=(CreateObject(body=build_prime(world, claim)),))
    return None


def _filled_by_others(world: World, claim: Claim) -> Decision:
    if claim.phase == "Bound":
        return replace(succeeded(claim, Ledger(), "populated by the populator of its dataSourceRef"), pod=None)
    still = standstill(world, claim)
    wait = Wait(reason=Reason.PENDING, message=claim.why_pending or "waiting for the populator of its dataSourceRef")
    return pending(claim, still.wait, still.phase) if still is not None else pending(claim, wait)


def _misbound(claim: Claim) -> ClaimMisbound:
    return ClaimMisbound(
        f"PVC {claim.name} was bound to volume {claim.volume_name} before its content was complete",
        where=f"{claim.namespace}/{claim.name}",
    )


def there_already(world: World, claim: Claim) -> Decision:
    """Return the state of a PVC whose volume came with its content."""
    if world.platform.cluster and claim.phase != "Bound":
        still = standstill(world, claim)
        if still is not None:
            return pending(claim, still.wait, still.phase)
    return succeeded(claim, Ledger(), "the volume already existed")


def rebinding(world: World, claim: Claim, actions: tuple[Action, ...]) -> Decision:
    """Return the state in which the content is complete and the target is being bound to its volume."""
    message = f"the content is complete; PVC {claim.name} is being bound to its volume"
    state = State(
        phase=_handing_over(world, claim),
        bound=bound_aspect(claim),
        running=no(Reason.COMPLETED, message),
        ready=no(Reason.PENDING, message),
        claim_name=claim.name,
        progress=progress_of(world.worker),
    )
    if by_storage(claim) is not None:
        return Decision(state=state, actions=actions)
    return Decision(state=state, actions=actions, pod="Running", prime_pod="Succeeded")


def _handing_over(world: World, claim: Claim) -> Phase:
    operation = operation_of(world.datavolume)
    if operation != "Clone":
        return Phase.UPLOAD_READY if operation == "Upload" else Phase.IMPORT_IN_PROGRESS
    namespace, _ = stand_in(claim)
    return Phase.REBIND_IN_PROGRESS if namespace == claim.namespace else Phase.NAMESPACE_TRANSFER_IN_PROGRESS


# --- scratch space ------------------------------------------------------------------------------------------------


def scratch_first(world: World, claim: Claim, ledger: Ledger) -> Decision | None:
    """Create scratch space after an attempt that lacked it; return None once the scratch PVC is usable."""
    filled = filled_claim(world, claim)
    if not world.platform.cluster or filled is None or ledger.failure is None or ledger.failure.code != SCRATCH_NEEDED:
        return None
    scratch = world.scratch
    if scratch is not None and not scratch.deleting:
        storage_class = world.objects.storage_class(scratch.storage_class) if scratch.storage_class else None
        if scratch.phase == "Bound" or (storage_class is not None and storage_class.waits):
            return None
    actions: tuple[Action, ...] = ()
    message = f"creating scratch space for {claim.name}: the image cannot be decoded as a stream"
    if scratch is None:
        actions = (CreateObject(body=build_scratch(world, filled)),)
    elif scratch.why_pending:
        message = f"{message}; {scratch.why_pending}"
    state = State(
        phase=Phase.IMPORT_SCHEDULED,
        bound=no(Reason.CREATING_SCRATCH_SPACE, message),
        running=no(Reason.PENDING, message),
        ready=no(Reason.CREATING_SCRATCH_SPACE, message),
        claim_name=claim.name,
    )
    return Decision(state=state, actions=actions, pod="Pending")


def has_scratch(world: World) -> bool:
    """Return whether the next attempt gets scratch space."""
    return world.scratch is not None and not world.scratch.deleting


def in_use(world: World, target: Claim) -> Wait | None:
    """Return what to wait for if other pods use the volume to be written; None if none do."""
    filled = filled_claim(world, target)
    if not world.platform.cluster or filled is None:
        return None
    pods = world.objects.users(filled.namespace, filled.name)
    if not pods:
        return None
    uploads = operation_of(world.datavolume) == "Upload"
    reason = EventReason.UPLOAD_TARGET_IN_USE if uploads else EventReason.IMPORT_TARGET_IN_USE
    named = f"Pod {pods[0]} uses" if len(pods) == 1 else f"Pods {', '.join(pods[:3])} use"
    message = f"{named} PVC {filled.name}. Try: stop the pods that use it; it is populated automatically afterwards"
    return Wait(reason=reason, message=message, event=reason)


# --- pods ---------------------------------------------------------------------------------------------------------


def for_pods(world: World, filled: Claim) -> World:
    """Return the world with the paths used inside a pod."""
    return replace(world, layout=pod_layout(filled, scratch=has_scratch(world)))


def in_pod(
    world: World, target: Claim, filled: Claim, prepared: Prepared, number: int, upload: str
) -> tuple[Action, ...]:
    """Return the actions that start an attempt in a pod.

    Raises:
        InvalidManifest: An annotation or a setting is invalid.

    """
    pod = _pod(world, target, filled, _attempt(world, prepared, number, upload))
    start = StartWorker(
        claim=filled.uid,
        namespace=filled.namespace,
        attempt=number,
        work=prepared.work,
        mounts=prepared.mounts,
        fingerprint=prepared.fingerprint,
        upload=upload,
        pod=pod,
    )
    before = before_target(filled) if isinstance(prepared.work, CopyTargetJob) else ()
    if takes_upload(world):
        before, complete = before_server(world, filled)
        if not complete:
            return before
    return (*copies(prepared.mounts, filled), *before, start)


def _attempt(world: World, prepared: Prepared, number: int, upload: str) -> Attempt:
    return Attempt(
        number=number,
        work=prepared.work,
        mounts=prepared.mounts,
        fingerprint=prepared.fingerprint,
        limits=limits_of(world),
        upload=upload,
    )


def _pod(world: World, target: Claim, filled: Claim, attempt: Attempt) -> dict[str, Any]:
    config, objects = world.config, world.objects
    pod = build_pod(world.datavolume, target, filled, attempt, config, objects, scratch=has_scratch(world))
    if takes_upload(world):
        return server_pod(filled, pod)
    return target_pod(filled, pod) if isinstance(attempt.work, CopyTargetJob) else pod


def cannot_begin(pod: Pod) -> bool:
    """Return whether a pod is blocked by something that does not resolve without a change."""
    usual = (Reason.PENDING, Reason.CONTAINER_CREATING, NODE_LOST)
    return not pod.started and not pod.deleting and pod.hold is not None and pod.hold.reason not in usual


def lost_scratch(world: World, pod: Pod) -> bool:
    """Return whether the scratch PVC of a pod that has not started is being deleted.

    The pod waits for the scratch PVC, and the scratch PVC is not removed while the pod exists.
    """
    return pod.scratch and not pod.started and not pod.deleting and not has_scratch(world)


def outdated(world: World, target: Claim, filled: Claim, prepared: Prepared, worker: Worker) -> tuple[Action, ...]:
    """Return the action that stops a pod whose template has changed; empty if it is unchanged.

    Raises:
        InvalidManifest: An annotation or a setting is invalid.

    """
    assert worker.pod is not None
    wanted = _pod(world, target, filled, _attempt(world, prepared, worker.attempt, worker.upload))
    same = wanted["metadata"]["annotations"][ANN_SPEC] == worker.pod.spec
    return () if same else (stopped(filled.namespace, worker.pod),)


def limits_of(world: World) -> Limits:
    """Return the limits from the annotations; no limits if the annotations are invalid."""
    try:
        knobs = read_knobs(world.datavolume.metadata.annotations)
    except InvalidManifest:
        return Limits()
    return Limits(bandwidth=knobs.bandwidth, connections=knobs.connections)


def relimited(world: World, worker: Worker) -> tuple[Action, ...]:
    """Return the patch that gives a running worker its current limits."""
    pod = worker.pod
    wanted = limits_of(world).to_json()
    if pod is None or pod.deleting or pod.limits == wanted:
        return ()
    namespace = world.datavolume.metadata.namespace or ""
    return (
        PatchObject(plural="pods", namespace=namespace, name=pod.name, uid=pod.uid, annotations={ANN_LIMITS: wanted}),
    )


# --- annotations --------------------------------------------------------------------------------------------------


def marks(world: World, claim: Claim, decision: Decision, status: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the PVC annotations that are specific to clusters."""
    state, populated = decision.state, is_populated(world, claim)
    wanted: dict[str, str | None] = {
        ANN_BOUND_CONDITION: state.bound.status.value.lower(),
        ANN_BOUND_CONDITION_REASON: state.bound.reason,
        ANN_BOUND_CONDITION_MESSAGE: state.bound.message,
    }
    if populated:
        wanted[ANN_USE_POPULATOR] = "true"
        if world.prime is not None:
            wanted[ANN_PVC_PRIME] = world.prime.name
    if world.scratch is not None or (decision.ledger is not None and _lacks_scratch(decision.ledger)):
        wanted[ANN_REQUIRES_SCRATCH] = "true"
    if state.running.reason == Reason.CHECKSUM_ERROR:
        wanted[ANN_IMPORT_FATAL_ERROR] = "true"
    if operation_of(world.datavolume) == "Clone":
        wanted |= {**clone_marks(claim, state), **reader_marks(world, claim)}
    if takes_upload(world):
        wanted |= upload_marks()
    if world.synthetic:
        wanted[ANN_STATUS] = json.dumps(status, separators=(",", ":"), sort_keys=True)
        if populated:
            wanted[ANN_POPULATOR_PROGRESS] = state.progress
    return wanted


def _lacks_scratch(ledger: Ledger) -> bool:
    return ledger.failure is not None and ledger.failure.code == SCRATCH_NEEDED
