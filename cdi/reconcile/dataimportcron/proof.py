"""Boot proof of a version: a virtual machine is booted from it before it is offered.

    no pod ── pod ── result of the worker ── status ── pod deleted
     │         └── ended for another reason: recorded in an annotation of the PVC, and repeated after a delay
     └── refused, or too many proofs: repeated after a delay

A virtual machine that does not boot is a final result. So is an error of the emulator itself if it occurs in every one
of `MAX_FAILURES` attempts. Everything else (a pod that is evicted, killed, interrupted or never starts, a worker image
without an emulator) says nothing about the version, which stays in the state Proving until the proof was made.

KVM is requested where a node offers it. If no node has it free for `KVM_PATIENCE`, the processor is emulated.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import ATTEMPT, FINGERPRINT, SPEC_DIGEST
from cdi.api.dataimportcron import GoldenVersion, VersionState
from cdi.api.errors import BootFailed, CdiError, Interrupted, Retry, WorkerLost, render
from cdi.api.job import Failure
from cdi.api.names import ANN_POD_RETAIN, proof_pod
from cdi.api.phases import Reason
from cdi.api.proof import ProofResult
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, Event
from cdi.reconcile.dataimportcron.context import Body, CronContext
from cdi.reconcile.dataimportcron.proof_local import plan_local_proof
from cdi.reconcile.dataimportcron.proof_pod import (
    KVM,
    build_proof_pod,
    job_fingerprint,
    pod_job,
    retains_pods,
)
from cdi.reconcile.dataimportcron.proof_result import (
    QUEUED,
    ProofAttempts,
    ProofStep,
    about,
    failing,
    forget_attempts,
    is_recorded,
    record_attempts,
    report_failure,
    report_result,
    waiting_for,
)
from cdi.reconcile.dataimportcron.slots import MAX_PROOFS, may_prove
from cdi.reconcile.pods.status import Termination, created_at, is_started, pending_reason, termination
from cdi.reconcile.pods.types import PodBlocker
from cdi.reconcile.types import PVC

KVM_PATIENCE: Final = 60.0
"""Seconds that a pod may wait for a node with free KVM before the processor is emulated."""
REFUSED_DELAY: Final = 30.0
"""Seconds until a pod that the API server rejected, or that must wait for others, is tried again."""
EMULATED: Final = "KvmUnavailable"
"""Reason of the event about a proof for which no node had KVM free."""


def plan_proof(context: CronContext, version: GoldenVersion, claim: PVC | None, *, required: bool = True) -> ProofStep:
    """Return the next step of the proof of a version.

    It is called for every version whose volume exists, until the end of its life: the pod of a finished proof is
    deleted only once its result is in the status.

    Args:
        context: The DataImportCron.
        version: The version, as in the status.
        claim: The PVC with its content; None if it does not exist.
        required: Whether versions have to be proven at present.

    """
    if claim is None:
        return ProofStep()
    if not context.platform.cluster:
        return ProofStep() if claim.deleting else plan_local_proof(context, version, claim, required=required)
    pod = context.objects.pod(claim.namespace, proof_pod(claim.uid, version.name))
    if claim.deleting:
        # A PVC exists as long as a pod uses it, so the pod would never be garbage-collected with it.
        return ProofStep(actions=() if pod is None or _is_deleting(pod) else (_delete(pod),))
    if version.state != VersionState.PROVING or not required:
        return _clean_up(context, claim, pod)
    attempts = ProofAttempts.read(claim.annotations)
    if pod is None:
        return _start(context, version, claim, attempts)
    ended = termination(pod)
    if _is_deleting(pod):
        return _waiting(pod, ended)
    annotations = annotations_of(pod)
    outdated = FINGERPRINT.read(annotations) != job_fingerprint(pod_job(context, claim))
    if outdated or (ended is not None and is_recorded(version, ended.ended)):
        return ProofStep(actions=(_delete(pod),), blocker=waiting_for("the pod of an earlier proof is deleted"))
    if ended is None:
        return _pending(context, version, claim, attempts, pod)
    return _finished(context, version, claim, attempts, pod, ended)


# --- before and while the pod runs --------------------------------------------------------------------------------


def _start(context: CronContext, version: GoldenVersion, claim: PVC, attempts: ProofAttempts) -> ProofStep:
    left = attempts.left(claim.uid, context.now)
    if left > 0 and attempts.failure is not None:
        # The failure was seen when it was recorded, and is shown until the next attempt.
        return ProofStep(blocker=failing(attempts.failure), requeue_after=left)
    pod = _build(context, version, claim, attempts)
    refusal = context.refusal
    if refusal is not None and _creates(refusal.action, pod):
        blocker = PodBlocker(reason=refusal.failure.code, message=refusal.failure.message)
        return ProofStep(blocker=blocker, requeue_after=REFUSED_DELAY)
    if not may_prove(context):
        message = f"at most {MAX_PROOFS} boot proofs run at once; this one starts automatically when it is its turn"
        return ProofStep(blocker=PodBlocker(reason=QUEUED, message=message), requeue_after=REFUSED_DELAY)
    blocker = failing(attempts.failure) if attempts.failure is not None else waiting_for("the pod is created")
    return ProofStep(actions=(CreateObject(body=pod),), blocker=blocker)


def _build(context: CronContext, version: GoldenVersion, claim: PVC, attempts: ProofAttempts) -> dict[str, Any]:
    return build_proof_pod(
        context,
        claim,
        version=version.name,
        architecture=version.architecture,
        attempt=attempts.attempt + 1,
        kvm=not attempts.emulate and context.objects.offers_device(KVM),
    )


def _creates(action: Action, pod: Body) -> bool:
    return (
        isinstance(action, CreateObject)
        and action.body["kind"] == "Pod"
        and action.body["metadata"]["name"] == pod["metadata"]["name"]
    )


def _waiting(pod: Body, ended: Termination | None) -> ProofStep:
    if ended is not None:
        return ProofStep(blocker=waiting_for("the pod of an earlier attempt is being deleted"))
    return ProofStep(blocker=pending_reason(pod) or waiting_for("the pod is being deleted"))


def _pending(context: CronContext, version: GoldenVersion, claim: PVC, attempts: ProofAttempts, pod: Body) -> ProofStep:
    """Return the step for a pod that has not ended: replace it if it cannot start as it is."""
    blocker = pending_reason(pod)
    if is_started(pod):
        return ProofStep(blocker=blocker or waiting_for(f"pod {pod['metadata']['name']} boots a virtual machine"))
    wanted = _build(context, version, claim, attempts)
    if SPEC_DIGEST.read(pod["metadata"]["annotations"]) != SPEC_DIGEST.read(wanted["metadata"]["annotations"]):
        # The worker's image, the placement or the offer of KVM has changed since, perhaps to correct what it waits for.
        return ProofStep(actions=(_delete(pod),), blocker=blocker or waiting_for("the pod is replaced"))
    if blocker is None or blocker.reason != Reason.UNSCHEDULABLE:
        return ProofStep(blocker=blocker or waiting_for("the pod starts"))
    if not _requests_kvm(pod):
        return ProofStep(blocker=_unschedulable(blocker, version))
    left = created_at(pod) + KVM_PATIENCE - context.now
    if left > 0:
        return ProofStep(blocker=blocker, requeue_after=min(left, KVM_PATIENCE))
    message = f"no node had KVM free within {KVM_PATIENCE:.0f} seconds; the processor is emulated, which is slower"
    event = Event(type="Warning", reason=EMULATED, message=about(version, message))
    actions = (record_attempts(claim, replace(attempts, emulate=True)), _delete(pod))
    return ProofStep(actions=actions, blocker=blocker, events=(event,))


def _requests_kvm(pod: Body) -> bool:
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    return KVM in ((containers[0].get("resources") or {}).get("limits") or {})


def _unschedulable(blocker: PodBlocker, version: GoldenVersion) -> PodBlocker:
    if not version.architecture:
        return blocker
    text = (
        f"{blocker.message}. It needs a node of architecture {version.architecture}: the worker's image emulates only "
        "that of its node"
    )
    return replace(blocker, message=text)


# --- after the pod has ended --------------------------------------------------------------------------------------


def _finished(
    context: CronContext,
    version: GoldenVersion,
    claim: PVC,
    attempts: ProofAttempts,
    pod: Body,
    ended: Termination,
) -> ProofStep:
    result = _parse_result(ended, claim)
    if isinstance(result, ProofResult):
        return report_result(version, claim, result, ended.ended)
    attempts, step = report_failure(context.now, version, claim, attempts, _attempt_of(pod), result, ended.ended)
    kept = retains_pods(context) and attempts.left(claim.uid, context.now) > 0
    # The pod is deleted only if the record was written: an outdated PVC stops the plan.
    return step if step.result is not None or kept else replace(step, actions=(*step.actions, _delete(pod)))


def _parse_result(ended: Termination, claim: PVC) -> ProofResult | Failure:
    """Return the worker's result, or why there is none."""
    try:
        result = ProofResult.from_json(json.dumps(ended.document)) if ended.document else None
    except ValueError:
        result = None
    # A result counts only if the exit status and the id agree with it.
    if result is not None and result.failure is not None and ended.exit_status not in (0, None):
        if result.failure.code == Interrupted.__name__:
            return _infrastructure(WorkerLost("the boot proof was interrupted"))
        return result.failure
    expected = 0 if result is not None and result.booted else BootFailed.exit_status
    if result is not None and result.failure is None and result.id == claim.uid and ended.exit_status == expected:
        return result
    return _infrastructure(ended.cause)


def _infrastructure(cause: CdiError) -> Failure:
    """Return the failure of a pod that ended for a reason of the cluster."""
    message = render(cause.what, cause.where, "the boot proof is repeated automatically")
    return Failure(code=cause.code, message=message, retry=Retry.BACKOFF, exit_status=cause.exit_status)


def _clean_up(context: CronContext, claim: PVC, pod: Body | None) -> ProofStep:
    """Return the step for a version that is not to be proven (any more): remove what its proof has left."""
    actions: tuple[Action, ...] = forget_attempts(claim)
    if pod is not None and not _is_deleting(pod):
        annotations = annotations_of(pod)
        kept = annotations.get(ANN_POD_RETAIN) == "true" or retains_pods(context)
        if not kept or termination(pod) is None:
            actions = (*actions, _delete(pod))
    return ProofStep(actions=actions)


# --- parts --------------------------------------------------------------------------------------------------------


def _attempt_of(pod: Body) -> int:
    number = ATTEMPT.read(annotations_of(pod))
    return 1 if number is None else number


def _is_deleting(pod: Body) -> bool:
    return pod["metadata"].get("deletionTimestamp") is not None


def _delete(pod: Body) -> DeleteObject:
    metadata = pod["metadata"]
    return DeleteObject(plural="pods", namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
