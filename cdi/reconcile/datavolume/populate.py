"""Cluster-only decisions: prime PVCs, scratch space, worker pods, and the annotations that show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cdi.api.annotations import IMPORT_STATUS, LIMITS, SPEC_DIGEST
from cdi.api.datavolume import DataVolume
from cdi.api.errors import ClaimMisbound, InvalidManifest
from cdi.api.job import Failure, Limits
from cdi.api.names import (
    ANN_BOUND_CONDITION,
    ANN_BOUND_CONDITION_MESSAGE,
    ANN_BOUND_CONDITION_REASON,
    ANN_IMPORT_FATAL_ERROR,
    ANN_POPULATOR_PROGRESS,
    ANN_PRE_POPULATED,
    ANN_PVC_PRIME,
    ANN_REQUIRES_SCRATCH,
    ANN_UPLOAD_CLIENT_NAME,
    ANN_USE_POPULATOR,
    prime_claim,
)
from cdi.api.phases import PROGRESS_UNKNOWN, EventReason, Phase, Reason
from cdi.api.policy import parse_policy_annotations
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    Event,
    PatchObject,
    RequireVersion,
    StartWorker,
    is_peer_import,
)
from cdi.reconcile.clone.host_assisted import before_target, source_pod_annotations, target_pod
from cdi.reconcile.clone.plan_annotation import by_storage, temporary_pvc
from cdi.reconcile.clone.status import clone_marks
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.claim_builder import build_prime, build_scratch
from cdi.reconcile.datavolume.provisioning import is_populated, provisioning_blocker, worker_claim
from cdi.reconcile.datavolume.rebind import recreate_prime, stopped
from cdi.reconcile.datavolume.result import (
    Result,
    bound_condition,
    failed,
    operation_of,
    pending,
    progress_of,
    provisioning_event,
    succeeded,
)
from cdi.reconcile.datavolume.retrying import SCRATCH_NEEDED
from cdi.reconcile.datavolume.status import DataVolumeState, false
from cdi.reconcile.datavolume.status_table import COMPLETE
from cdi.reconcile.datavolume.upload import upload_annotations
from cdi.reconcile.datavolume.upload_server import accepts_upload, before_server, server_pod
from cdi.reconcile.pods.builder import Attempt, build_worker_pod, mirror_actions, pod_layout
from cdi.reconcile.pods.job import WorkerSpec
from cdi.reconcile.pods.status import NODE_LOST
from cdi.reconcile.pods.types import Pod, Worker
from cdi.reconcile.types import PVC, ExternalPopulator, Pending, Rejected, ResolvedSource


def ensure_prime(context: ReconcileContext, claim: PVC, origin: ResolvedSource) -> Result | None:
    """Return the result that applies until a worker can be given a volume; None if one can start."""
    if isinstance(origin, Rejected):
        return failed(claim, origin.failure)
    if isinstance(origin, ExternalPopulator):
        return _filled_by_others(context, claim)
    populated, prime = is_populated(context.platform, claim), context.prime
    if claim.phase == "Bound":
        return bound_without_content(context, claim) if populated else None
    if populated and prime is not None and (prime.deleting or prime.phase == "Lost"):
        wait = Pending(reason=Reason.PENDING, message=f"PVC {prime.name} lost its PersistentVolume; recreating it")
        return replace(pending(claim, wait), actions=recreate_prime(prime))
    still = provisioning_blocker(context, claim)
    if still is not None:
        return pending(claim, still.wait, still.phase)
    if populated and prime is None:
        if isinstance(origin, Pending):
            return pending(claim, origin)
        wait = Pending(
            reason=Reason.PENDING,
            message=f"creating the temporary PVC {prime_claim(claim.uid)}, which is populated first",
        )
        made = Event(
            type="Normal", reason=EventReason.CREATED_PVC_PRIME, message=f"PVC {prime_claim(claim.uid)} created"
        )
        result = replace(pending(claim, wait), events=(made,))
        return replace(result, actions=(CreateObject(body=build_prime(context, claim, origin)),))
    return None


def _filled_by_others(context: ReconcileContext, claim: PVC) -> Result:
    if claim.phase == "Bound":
        message = "populated by the populator of its dataSourceRef"
        return replace(succeeded(claim, AttemptHistory(), message, operation=None), pod=None)
    still = provisioning_blocker(context, claim)
    wait = Pending(
        reason=Reason.PENDING, message=claim.provisioning_message or "waiting for the populator of its dataSourceRef"
    )
    return pending(claim, still.wait, still.phase) if still is not None else pending(claim, wait)


def bound_without_content(context: ReconcileContext, claim: PVC) -> Result:
    """Return the state of a populated PVC that is bound, as far as observed to another volume than the filled one.

    A PVC is bound after its volume names it. A cached volume that does not name it yet is older than the PVC, and may
    have been rebound in the meantime, so a failure for good has to wait for the watch of PersistentVolumes.
    """
    volume = context.objects.volume(claim.volume_name)
    if volume is None or volume.claim_uid != claim.uid:
        return rebind_status(context, claim, ())
    error = ClaimMisbound(
        f"PVC {claim.name} was bound to volume {claim.volume_name} before its content was complete",
        where=f"{claim.namespace}/{claim.name}",
    )
    return failed(claim, Failure.from_error(error))


def already_populated(context: ReconcileContext, claim: PVC) -> Result:
    """Return the state of a PVC whose volume came with its content."""
    if context.platform.cluster and claim.phase != "Bound":
        still = provisioning_blocker(context, claim)
        if still is not None:
            return pending(claim, still.wait, still.phase)
    result = succeeded(claim, AttemptHistory(), "the volume already existed", operation=None)
    return replace(result, state=replace(result.state, progress=PROGRESS_UNKNOWN))


def mark_prepopulated(dv: DataVolume, claim: PVC) -> tuple[PatchObject, ...]:
    """Mark the DataVolume of a PVC that came with its content, so that it waits for that PVC if it is restored."""
    if (dv.metadata.annotations or {}).get(ANN_PRE_POPULATED) == claim.name:
        return ()
    return (PatchObject.of_data_volume(dv, annotations={ANN_PRE_POPULATED: claim.name}),)


def rebind_status(context: ReconcileContext, claim: PVC, actions: tuple[Action, ...]) -> Result:
    """Return the state in which the content is complete and the target is being bound to its volume."""
    message = f"the content is complete; PVC {claim.name} is being bound to its volume"
    state = DataVolumeState(
        phase=_handing_over(context.datavolume, claim),
        bound=bound_condition(claim),
        running=COMPLETE[operation_of(context.datavolume)],
        ready=false(Reason.PENDING, message),
        claim_name=claim.name,
        progress=progress_of(context.worker),
    )
    if by_storage(claim) is not None:
        return Result(state=state, actions=actions)
    return Result(state=state, actions=actions, pod="Running", prime_pod_phase="Succeeded")


def _handing_over(dv: DataVolume, claim: PVC) -> Phase:
    operation = operation_of(dv)
    if operation != "Clone":
        return Phase.UPLOAD_READY if operation == "Upload" else Phase.IMPORT_IN_PROGRESS
    namespace, _ = temporary_pvc(claim)
    return Phase.REBIND_IN_PROGRESS if namespace == claim.namespace else Phase.NAMESPACE_TRANSFER_IN_PROGRESS


# --- scratch space ------------------------------------------------------------------------------------------------


def ensure_scratch(context: ReconcileContext, claim: PVC, attempts: AttemptHistory) -> Result | None:
    """Create scratch space after an attempt that lacked it; return None once the scratch PVC is usable."""
    filled = worker_claim(context, claim)
    if (
        not context.platform.cluster
        or filled is None
        or attempts.failure is None
        or attempts.failure.code != SCRATCH_NEEDED
    ):
        return None
    scratch = context.scratch
    if scratch is not None and not scratch.deleting:
        storage_class = context.objects.storage_class(scratch.storage_class) if scratch.storage_class else None
        if scratch.phase == "Bound" or (storage_class is not None and storage_class.wait_for_first_consumer):
            return None
    actions: tuple[Action, ...] = ()
    message = f"creating scratch space for {claim.name}: the image cannot be decoded as a stream"
    if scratch is None:
        actions = (CreateObject(body=build_scratch(context.config, filled)),)
    elif scratch.provisioning_message:
        message = f"{message}; {scratch.provisioning_message}"
    state = DataVolumeState(
        phase=Phase.IMPORT_SCHEDULED,
        bound=false(Reason.CREATING_SCRATCH_SPACE, message),
        running=false(Reason.PENDING, message),
        ready=false(Reason.CREATING_SCRATCH_SPACE, message),
        claim_name=claim.name,
    )
    return Result(state=state, actions=actions, pod="Pending")


def has_scratch(scratch: PVC | None) -> bool:
    """Return whether the next attempt gets scratch space."""
    return scratch is not None and not scratch.deleting


def in_use(context: ReconcileContext, target: PVC) -> Pending | None:
    """Return what to wait for if other pods use the volume to be written; None if none do."""
    filled = worker_claim(context, target)
    if not context.platform.cluster or filled is None:
        return None
    pods = context.objects.users(filled.namespace, filled.name)
    if not pods:
        return None
    uploads = operation_of(context.datavolume) == "Upload"
    reason = EventReason.UPLOAD_TARGET_IN_USE if uploads else EventReason.IMPORT_TARGET_IN_USE
    named = f"Pod {pods[0]} uses" if len(pods) == 1 else f"Pods {', '.join(pods[:3])} use"
    message = f"{named} PVC {filled.name}. Try: stop the pods that use it; it is populated automatically afterwards"
    return Pending(reason=reason, message=message, event=reason)


# --- pods ---------------------------------------------------------------------------------------------------------


def for_pods(context: ReconcileContext, filled: PVC) -> ReconcileContext:
    """Return the context with the paths used inside a pod."""
    return replace(context, layout=pod_layout(filled, scratch=has_scratch(context.scratch)))


def start_worker_pod(
    context: ReconcileContext, target: PVC, filled: PVC, prepared: WorkerSpec, number: int, upload: str
) -> tuple[Action, ...]:
    """Return the actions that start an attempt in a pod.

    Raises:
        InvalidManifest: An annotation or a setting is invalid.

    """
    pod = _pod(context, target, filled, _attempt(context.datavolume, prepared, number, upload))
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
    before = before_target(filled) if is_peer_import(prepared.work) else ()
    if accepts_upload(context):
        before, complete = before_server(context.service, filled)
        if not complete:
            return before
    # A start that follows from an outdated history would repeat a finished attempt. The history is read, not written:
    # the event of a write would start a rejected pod again at once, past every delay.
    claims = (target,) if target.uid == filled.uid else (target, filled)
    newest = tuple(RequireVersion.of_claim(claim) for claim in claims)
    return (*mirror_actions(prepared.mounts, filled), *before, *newest, start)


def _attempt(dv: DataVolume, prepared: WorkerSpec, number: int, upload: str) -> Attempt:
    return Attempt(
        number=number,
        work=prepared.work,
        mounts=prepared.mounts,
        fingerprint=prepared.fingerprint,
        limits=limits_of(dv),
        upload=upload,
    )


def _pod(context: ReconcileContext, target: PVC, filled: PVC, attempt: Attempt) -> dict[str, Any]:
    config, objects = context.config, context.objects
    pod = build_worker_pod(
        context.datavolume, target, filled, attempt, config, objects, scratch=has_scratch(context.scratch)
    )
    if accepts_upload(context):
        return server_pod(filled, pod)
    return target_pod(filled, pod) if is_peer_import(attempt.work) else pod


def is_stuck(pod: Pod) -> bool:
    """Return whether a pod is blocked by something that does not resolve without a change."""
    usual = (Reason.PENDING, Reason.CONTAINER_CREATING, NODE_LOST)
    return not pod.started and not pod.deleting and pod.hold is not None and pod.hold.reason not in usual


def scratch_deleted(scratch: PVC | None, pod: Pod) -> bool:
    """Return whether the scratch PVC of a pod that has not started is being deleted.

    The pod waits for the scratch PVC, and the scratch PVC is not removed while the pod exists.
    """
    return pod.scratch and not pod.started and not pod.deleting and not has_scratch(scratch)


def template_changed(
    context: ReconcileContext, target: PVC, filled: PVC, prepared: WorkerSpec, worker: Worker
) -> tuple[Action, ...]:
    """Return the action that stops a pod whose template has changed; empty if it is unchanged.

    Raises:
        InvalidManifest: An annotation or a setting is invalid.

    """
    assert worker.pod is not None
    attempt = _attempt(context.datavolume, prepared, worker.attempt, worker.upload)
    digest = SPEC_DIGEST.read(_pod(context, target, filled, attempt)["metadata"]["annotations"])
    return () if digest == worker.pod.spec else (stopped(filled.namespace, worker.pod),)


def restarts_in_place(
    context: ReconcileContext, target: PVC, prepared: WorkerSpec, worker: Worker, failure: Failure
) -> bool:
    """Return whether the next attempt after `failure` is a restart of the container in the same pod.

    Another pod is created if the next attempt needs other inputs, scratch space or another pod template.
    """
    pod, filled = worker.pod, worker_claim(context, target)
    if pod is None or filled is None or not pod.restarts or pod.deleting or failure.needs_new_pod:
        return False
    if prepared.fingerprint != worker.fingerprint or pod.scratch != has_scratch(context.scratch):
        return False
    # The scheduler may have chosen the node of the volume since, but the pod stays on its own.
    for claim in (filled, replace(filled, selected_node="")):
        owner = target if claim is filled else replace(target, selected_node="")
        try:
            if not template_changed(context, owner, claim, prepared, worker):
                return True
        except InvalidManifest:
            return False
    return False


def limits_of(dv: DataVolume) -> Limits:
    """Return the limits from the annotations; no limits if the annotations are invalid."""
    try:
        policy_annotations = parse_policy_annotations(dv.metadata.annotations)
    except InvalidManifest:
        return Limits()
    return Limits(bandwidth=policy_annotations.bandwidth, connections=policy_annotations.connections)


def update_limits(dv: DataVolume, worker: Worker) -> tuple[Action, ...]:
    """Return the patch that gives a running worker its current limits."""
    pod = worker.pod
    wanted = limits_of(dv).to_json()
    if pod is None or pod.deleting or pod.limits == wanted:
        return ()
    namespace = dv.metadata.namespace or ""
    annotations = LIMITS.write(wanted)
    return (PatchObject(plural="pods", namespace=namespace, name=pod.name, uid=pod.uid, annotations=annotations),)


# --- annotations --------------------------------------------------------------------------------------------------


def status_annotations(
    context: ReconcileContext, claim: PVC, result: Result, status: Mapping[str, Any]
) -> dict[str, str | None]:
    """Return the PVC annotations that are specific to clusters."""
    state, populated = result.state, is_populated(context.platform, claim)
    wanted: dict[str, str | None] = {
        ANN_BOUND_CONDITION: state.bound.status.value.lower(),
        ANN_BOUND_CONDITION_REASON: state.bound.reason,
        ANN_BOUND_CONDITION_MESSAGE: provisioning_event(context.prime, claim) or state.bound.message,
    }
    if context.synthetic and state.ready.message and wanted[ANN_BOUND_CONDITION_MESSAGE] == state.bound.message:
        # Without a DataVolume this annotation is all that users see of what the PVC waits for.
        wanted[ANN_BOUND_CONDITION_MESSAGE] = f"{state.bound.message}: {state.ready.message}"
    if populated:
        wanted[ANN_USE_POPULATOR] = "true"
        if context.prime is not None:
            wanted[ANN_PVC_PRIME] = context.prime.name
    if context.scratch is not None or (result.attempts is not None and _lacks_scratch(result.attempts)):
        wanted[ANN_REQUIRES_SCRATCH] = "true"
    if state.running.reason == Reason.CHECKSUM_ERROR:
        wanted[ANN_IMPORT_FATAL_ERROR] = "true"
    if operation_of(context.datavolume) == "Clone":
        wanted |= {**clone_marks(claim, state), **source_pod_annotations(context, claim)}
    if accepts_upload(context) and ANN_UPLOAD_CLIENT_NAME not in claim.annotations:
        wanted |= upload_annotations()
    if context.synthetic:
        wanted |= IMPORT_STATUS.write(status)
    if populated and _shows_progress(context.prime, claim, state):
        wanted[ANN_POPULATOR_PROGRESS] = state.progress
    return wanted


def _shows_progress(prime: PVC | None, claim: PVC, state: DataVolumeState) -> bool:
    """Return whether there is progress to show on a populated PVC.

    A PVC that the storage clones is not written before its end.
    """
    if state.phase.final:
        return True
    if by_storage(claim) is not None:
        return False
    return state.progress != PROGRESS_UNKNOWN or (prime is not None and prime.phase == "Bound")


def _lacks_scratch(attempts: AttemptHistory) -> bool:
    return attempts.failure is not None and attempts.failure.code == SCRATCH_NEEDED
