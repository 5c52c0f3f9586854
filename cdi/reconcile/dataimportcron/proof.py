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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Self

from cdi.api.dataimportcron import GoldenVersion, ProofStatus, VersionState
from cdi.api.decode import DecodeError, decode
from cdi.api.errors import BootFailed, CdiError, Interrupted, Retry, WorkerLost, render
from cdi.api.golden import RETRY
from cdi.api.job import Failure
from cdi.api.names import ANN_POD_RETAIN, GROUP, proof_pod
from cdi.api.phases import Reason
from cdi.api.proof import ProofResult
from cdi.api.timestamps import timestamp
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, Event, PatchObject
from cdi.reconcile.attempts import AttemptHistory
from cdi.reconcile.context import CLUSTER_RETRIES, PVC, PodBlocker
from cdi.reconcile.dataimportcron.context import Body, CronContext
from cdi.reconcile.dataimportcron.proof_pod import (
    KVM,
    build_proof_pod,
    job_fingerprint,
    pod_job,
    retains_pods,
)
from cdi.reconcile.pod_builder import ANN_ATTEMPT, ANN_FINGERPRINT, ANN_SPEC
from cdi.reconcile.pod_status import Termination, created_at, is_started, pending_reason, termination

ANNOTATION: Final = f"{GROUP}/golden.proofAttempts"
"""Annotation of a version's PVC: JSON of `ProofAttempts`, until the proof has a result."""
MAX_FAILURES: Final = 3
"""Consecutive attempts that end with an error of the emulator, after which the version is unproven."""
MAX_ACTIVE: Final = 8
"""Proof pods of all DataImportCrons at a time."""
KVM_PATIENCE: Final = 60.0
"""Seconds that a pod may wait for a node with free KVM before the processor is emulated."""
REFUSED_DELAY: Final = 30.0
"""Seconds until a pod that the API server rejected, or that must wait for others, is tried again."""
MAX_EVENT: Final = 1024
"""Characters of an event's message."""
QUEUED: Final = "ProofQueued"
BOOT_PROVEN: Final = "BootProven"
RUNNING: Final = "ProofRunning"
EMULATED: Final = "KvmUnavailable"
"""Reason of the event about a proof for which no node had KVM free."""
_MAX_FAILURE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofStep:
    """The next step of a version's proof."""

    actions: tuple[Action, ...] = ()
    result: ProofStatus | None = None
    """Set once the proof was made; the version is then available or unproven."""
    reason: str = ""
    """Code of the failure, if the result is that the version is unproven."""
    message: str = ""
    """Cause and remedy, or what was seen of a successful boot; set with `result`."""
    blocker: PodBlocker | None = None
    """What the proof is waiting for; None if there is a result."""
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofAttempts:
    """The attempts that ended without a result."""

    attempt: int = 0
    """Number of the newest of them."""
    failures: int = 0
    """Number of consecutive failures of the emulator itself."""
    ended: float = 0.0
    """End of the newest attempt in seconds since the epoch."""
    failure: Failure | None = None
    """Why it has no result."""
    emulate: bool = False
    """Whether the next attempt does without KVM, because no node had it free."""

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Parse the annotation; a missing or invalid one means that there were no attempts."""
        try:
            return decode(cls, text) if text else cls()
        except DecodeError:
            return cls()

    def write(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def due(self, uid: str) -> float:
        """Return when the next attempt is due, in seconds since the epoch."""
        if self.failure is None:
            return 0.0
        history = AttemptHistory(attempt=self.attempt, failure=self.failure, failures=self.attempt)
        return self.ended + history.backoff(uid, CLUSTER_RETRIES)


def plan_proof(context: CronContext, version: GoldenVersion, claim: PVC | None) -> ProofStep:
    """Return the next step of the proof of a version.

    It is called for every version whose volume exists, until the end of its life: the pod of a finished proof is
    deleted only once its result is in the status.

    Args:
        context: The DataImportCron.
        version: The version, as in the status.
        claim: The PVC with its content; None if it does not exist.

    """
    if claim is None or claim.deleting:
        # The pod is garbage-collected with the PVC.
        return ProofStep()
    pod = context.objects.pod(claim.namespace, proof_pod(claim.uid, version.name))
    if version.state != VersionState.PROVING:
        return _clean_up(context, claim, pod)
    attempts = ProofAttempts.read(claim.annotations.get(ANNOTATION))
    if pod is None:
        return _start(context, version, claim, attempts)
    ended = termination(pod)
    if pod["metadata"].get("deletionTimestamp") is not None:
        return _waiting(pod, ended)
    annotations = pod["metadata"].get("annotations") or {}
    outdated = annotations.get(ANN_FINGERPRINT) != job_fingerprint(pod_job(context, claim))
    if outdated or (ended is not None and _is_recorded(version, ended)):
        return ProofStep(actions=(_delete(pod),), blocker=_running("the pod of an earlier proof is deleted"))
    if ended is None:
        return _pending(context, version, claim, attempts, pod)
    return _finished(context, version, claim, attempts, pod, ended)


# --- before and while the pod runs --------------------------------------------------------------------------------


def _start(context: CronContext, version: GoldenVersion, claim: PVC, attempts: ProofAttempts) -> ProofStep:
    left = min(attempts.due(claim.uid) - context.now, 1.25 * CLUSTER_RETRIES.longest)
    if left > 0 and attempts.failure is not None:
        # The failure was seen when it was recorded, and is shown until the next attempt.
        return ProofStep(blocker=_failing(attempts.failure), requeue_after=left)
    pod = _build(context, version, claim, attempts)
    refusal = context.refusal
    if refusal is not None and _creates(refusal.action, pod):
        blocker = PodBlocker(reason=refusal.failure.code, message=refusal.failure.message)
        return ProofStep(blocker=blocker, requeue_after=REFUSED_DELAY)
    if context.objects.active_proofs() >= MAX_ACTIVE:
        message = f"{MAX_ACTIVE} boot proofs are running; this one starts automatically after one of them"
        return ProofStep(blocker=PodBlocker(reason=QUEUED, message=message), requeue_after=REFUSED_DELAY)
    blocker = _failing(attempts.failure) if attempts.failure is not None else _running("the pod is created")
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
        return ProofStep(blocker=_running("the pod of an earlier attempt is being deleted"))
    return ProofStep(blocker=pending_reason(pod) or _running("the pod is being deleted"))


def _pending(context: CronContext, version: GoldenVersion, claim: PVC, attempts: ProofAttempts, pod: Body) -> ProofStep:
    """Return the step for a pod that has not ended: replace it if it cannot start as it is."""
    blocker = pending_reason(pod)
    if is_started(pod):
        return ProofStep(blocker=blocker or _running(f"pod {pod['metadata']['name']} boots a virtual machine"))
    wanted = _build(context, version, claim, attempts)["metadata"]["annotations"][ANN_SPEC]
    if pod["metadata"]["annotations"].get(ANN_SPEC) != wanted:
        # The worker's image, the placement or the offer of KVM has changed since, perhaps to correct what it waits for.
        return ProofStep(actions=(_delete(pod),), blocker=blocker or _running("the pod is replaced"))
    if blocker is None or blocker.reason != Reason.UNSCHEDULABLE:
        return ProofStep(blocker=blocker or _running("the pod starts"))
    if not _requests_kvm(pod):
        return ProofStep(blocker=_unschedulable(blocker, version))
    left = created_at(pod) + KVM_PATIENCE - context.now
    if left > 0:
        return ProofStep(blocker=blocker, requeue_after=min(left, KVM_PATIENCE))
    message = f"no node had KVM free within {KVM_PATIENCE:.0f} seconds; the processor is emulated, which is slower"
    event = Event(type="Warning", reason=EMULATED, message=_about(version, message))
    actions = (_record(claim, replace(attempts, emulate=True)), _delete(pod))
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
        return _report(version, claim, result, ended)
    known = attempts
    if (number := _attempt_of(pod)) > attempts.attempt:
        attempts = replace(
            attempts,
            attempt=number,
            failures=attempts.failures + 1 if result.retry is Retry.NEVER else 0,
            ended=ended.ended,
            failure=replace(result, message=result.message[:_MAX_FAILURE], upstream=""),
        )
    record: tuple[Action, ...] = () if attempts == known else (_record(claim, attempts),)
    if attempts.failures >= MAX_FAILURES:
        return replace(_give_up(version, attempts.failures, result, ended), actions=record)
    left = attempts.due(claim.uid) - context.now
    step = ProofStep(blocker=_failing(result), requeue_after=left if left > 0 else None)
    if record:
        event = Event(type="Warning", reason=result.code, message=_about(version, result.message))
        step = replace(step, events=(event,))
    kept = retains_pods(context) and left > 0
    # The pod is deleted only if the record was written: an outdated PVC stops the plan.
    return replace(step, actions=(*record, *(() if kept else (_delete(pod),))))


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


def _report(version: GoldenVersion, claim: PVC, result: ProofResult, ended: Termination) -> ProofStep:
    status = ProofStatus(
        booted=result.booted,
        message=result.message[:_MAX_FAILURE] or None,
        accelerator=result.accelerator or None,
        finished=_time(ended.ended),
    )
    if result.booted:
        message = f"booted in {result.seconds:.1f} s with {result.accelerator}: {result.message}"
        event = Event(type="Normal", reason=BOOT_PROVEN, message=_about(version, message))
        return ProofStep(actions=_forget(claim), result=status, message=result.message, events=(event,))
    code = BootFailed.__name__
    remedy = f"correct the image; annotation {RETRY} repeats the proof of this version"
    message = render(result.message, None, remedy)
    console = " | ".join(line.strip() for line in result.console.splitlines() if line.strip())
    if console:
        room = MAX_EVENT - len(_about(version, message)) - len("  Console: …")
        message += f" Console: …{console[-room:]}" if len(console) > room > 0 else f" Console: {console}"
    event = Event(type="Warning", reason=code, message=_about(version, message))
    return ProofStep(actions=_forget(claim), result=status, reason=code, message=message, events=(event,))


def _give_up(version: GoldenVersion, failures: int, failure: Failure, ended: Termination) -> ProofStep:
    """Return the final result after the emulator itself has failed again and again."""
    message = f"the boot proof failed {failures} times: {failure.message}"[:MAX_EVENT]
    status = ProofStatus(booted=False, message=message[:_MAX_FAILURE], finished=_time(ended.ended))
    event = Event(type="Warning", reason=failure.code, message=_about(version, message))
    return ProofStep(result=status, reason=failure.code, message=message, events=(event,))


def _is_recorded(version: GoldenVersion, ended: Termination) -> bool:
    """Return whether a pod's result was recorded before, so that the version is proven again by request."""
    finished = version.proof.finished if version.proof is not None else None
    return finished is not None and _time(ended.ended) <= finished


def _clean_up(context: CronContext, claim: PVC, pod: Body | None) -> ProofStep:
    """Remove what a proof has left, once it is not wanted any more."""
    actions: tuple[Action, ...] = _forget(claim)
    if pod is not None and pod["metadata"].get("deletionTimestamp") is None:
        annotations = pod["metadata"].get("annotations") or {}
        kept = annotations.get(ANN_POD_RETAIN) == "true" or retains_pods(context)
        if not kept or termination(pod) is None:
            actions = (*actions, _delete(pod))
    return ProofStep(actions=actions)


# --- parts --------------------------------------------------------------------------------------------------------


def _attempt_of(pod: Body) -> int:
    text = (pod["metadata"].get("annotations") or {}).get(ANN_ATTEMPT, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 1


def _record(claim: PVC, attempts: ProofAttempts | None) -> PatchObject:
    return PatchObject(
        plural="persistentvolumeclaims",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        annotations={ANNOTATION: None if attempts is None else attempts.write()},
        version=claim.version,
    )


def _forget(claim: PVC) -> tuple[PatchObject, ...]:
    return (_record(claim, None),) if ANNOTATION in claim.annotations else ()


def _delete(pod: Body) -> DeleteObject:
    metadata = pod["metadata"]
    return DeleteObject(plural="pods", namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])


def _running(message: str) -> PodBlocker:
    return PodBlocker(reason=RUNNING, message=message)


def _failing(failure: Failure) -> PodBlocker:
    return PodBlocker(reason=failure.code, message=failure.message)


def _about(version: GoldenVersion, message: str) -> str:
    text = f'Version "{version.name}": {message}'
    return text if len(text) <= MAX_EVENT else f"{text[: MAX_EVENT - 1]}…"


def _time(seconds: float) -> str:
    return timestamp(datetime.fromtimestamp(seconds, UTC))
