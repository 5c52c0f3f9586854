"""Constructors for the possible states of a DataVolume, one function for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from cdi.api.conditions import find_condition
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, ChecksumMismatch, ClaimLost, by_code
from cdi.api.image_facts import ImageFacts
from cdi.api.importer_messages import condition_text, is_image_pull
from cdi.api.job import Failure, Outcome, Progress
from cdi.api.names import GROUP, LABEL_APPLY_STORAGE_PROFILE
from cdi.api.phases import PROGRESS_DONE, PROGRESS_UNKNOWN, ConditionType, EventReason, Phase, Reason, progress
from cdi.reconcile.actions import Action, Event
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.status import ConditionValue, DataVolumeState, false, true
from cdi.reconcile.datavolume.status_table import (
    BOUND,
    COMPLETE,
    LOST,
    NOT_FOUND,
    PENDING,
    PENDING_EVENT,
    PRIME_EVENT,
    RUNS,
)
from cdi.reconcile.datavolume.upload import UPLOAD_SOURCE
from cdi.reconcile.pods.types import Pod, PodBlocker, Worker
from cdi.reconcile.types import PVC, Import, Operation, Pending, ResolvedSource

_MESSAGE = 1024
ON_THE_WAY = (Reason.PENDING, Reason.CONTAINER_CREATING)
"""Reasons of `cdi.reconcile.pods.types.PodBlocker` that every pod passes through before it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A state and the actions that it requires."""

    state: DataVolumeState
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    wants_worker: bool = False
    events: tuple[Event, ...] = ()
    pod: str | None = None
    """Value of the PVC's ``storage.pod.phase``; None leaves it unchanged."""
    attempts: AttemptHistory | None = None
    unseen: Failure | None = None
    """The failure of an attempt that was first observed when the next one ran already, or had ended."""
    outcome: Outcome | None = None
    """The outcome of an import that has just succeeded."""
    prime_pod_phase: str | None = None
    """Value of ``storage.pod.phase`` for the prime PVC, if it differs from `pod`."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Further annotations of the PVC."""


def operation_of(dv: DataVolume) -> Operation:
    """Return the operation that provides the content; an unknown source counts as an import."""
    if dv.spec.is_clone:
        return "Clone"
    if dv.spec.source is not None:
        return "Upload" if dv.spec.source.upload is not None else "Import"
    ref = dv.spec.claim.data_source_ref if dv.spec.claim is not None else None
    uploads = ref is not None and (ref.api_group, ref.kind) == (GROUP, UPLOAD_SOURCE)
    return "Upload" if uploads else "Import"


def running(dv: DataVolume, claim: PVC, source: ResolvedSource, worker: Worker, last: Failure | None) -> Result:
    """Return the state for a worker that has not ended; `last` is the failure of the attempt before it."""
    pod = worker.pod
    if pod is not None and (not pod.started or pod.hold is not None):
        usual = pod.hold is None or pod.hold.reason in ON_THE_WAY
        return failing(dv, claim, source, last, worker) if last is not None and usual else _held(dv, claim, worker, pod)
    progress = worker.progress
    failure = progress.failure if progress is not None else None
    if failure is None and not _has_moved(progress):
        failure = last
    if failure is not None:
        return failing(dv, claim, source, failure, worker)
    note = progress.note if progress is not None else ""
    state = DataVolumeState(
        phase=phase_of(dv, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY),
        bound=bound_condition(claim),
        running=true(RUNS, note[:_MESSAGE]),
        ready=false("", note[:_MESSAGE]),
        claim_name=claim.name,
        progress=progress_of(worker),
    )
    return Result(state=state, pod="Running")


def _has_moved(progress: Progress | None) -> bool:
    """Return whether an attempt has got past requesting its source."""
    if progress is None:
        return False
    return progress.fetched > 0 or progress.written > 0 or progress.phase not in ("preparing", "transferring")


def failing(dv: DataVolume, claim: PVC, source: ResolvedSource, failure: Failure, worker: Worker | None) -> Result:
    """Return the state from a failed try until data flows again, whether `worker` is backing off or has yet to start.

    KubeVirt's CDI shows the same while its importer container waits to be restarted.
    """
    state = DataVolumeState(
        phase=phase_of(dv, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY),
        bound=bound_condition(claim),
        running=not_running(source, failure),
        ready=false(failure.code, failure.message),
        claim_name=claim.name,
        progress=progress_of(worker),
    )
    return Result(state=state, pod="Running")


def _held(dv: DataVolume, claim: PVC, worker: Worker, pod: Pod) -> Result:
    """Return the state for a pod that does not run, or is about to stop."""
    hold = pod.hold or PodBlocker(reason=Reason.PENDING, message=f"Pod {pod.name} has not started")
    state = DataVolumeState(
        phase=phase_of(dv, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY)
        if pod.started
        else phase_of(dv, Phase.IMPORT_SCHEDULED, Phase.CLONE_SCHEDULED, Phase.UPLOAD_SCHEDULED),
        bound=bound_condition(claim),
        running=false(hold.reason, hold.message),
        ready=false(hold.reason, hold.message),
        claim_name=claim.name,
        progress=progress_of(worker),
    )
    return Result(state=state, pod="Running" if pod.started else "Pending")


def succeeded(
    claim: PVC,
    attempts: AttemptHistory,
    message: str,
    outcome: Outcome | None = None,
    *,
    operation: Operation | None,
) -> Result:
    """Return the state of a complete volume, with `message` or what it was verified by.

    Args:
        claim: The PVC.
        attempts: Its attempt history.
        message: Where the content comes from, if no worker has provided it.
        outcome: The outcome of the worker's attempt that has just succeeded.
        operation: What has provided the content; None if nothing ran for it.

    """
    checks = (outcome if outcome is not None else ImageFacts.read(claim.annotations)).verified_by
    text = message or (f"verified by {', '.join(checks)}" if checks else "")
    state = DataVolumeState(
        phase=Phase.SUCCEEDED,
        bound=bound_condition(claim),
        running=false() if operation is None else COMPLETE[operation],
        ready=true("", text),
        claim_name=claim.name,
        progress=PROGRESS_DONE,
    )
    return Result(state=state, pod="Succeeded" if attempts.done else None, outcome=outcome)


def failed(claim: PVC | None, failure: Failure, running: ConditionValue | None = None) -> Result:
    """Return the final failed state.

    Args:
        claim: The DataVolume's own PVC; None if there is none.
        failure: The cause.
        running: The Running condition, if it differs from the failure's message.

    """
    state = DataVolumeState(
        phase=Phase.FAILED,
        bound=bound_condition(claim) if claim is not None else NOT_FOUND,
        running=running or false(Reason.ERROR, failure.message),
        ready=false(failure.code, failure.message),
        claim_name=claim.name if claim is not None else None,
    )
    return Result(state=state, pod="Failed")


def claim_lost(dv: DataVolume, name: str) -> Result:
    """Return the failed state of a DataVolume whose volume was lost."""
    error = ClaimLost(f"the volume of PVC {dv.metadata.namespace}/{name} is lost")
    state = DataVolumeState(
        phase=Phase.FAILED,
        bound=LOST,
        running=false(Reason.ERROR, error.message),
        ready=false(Reason.CLAIM_LOST, error.message),
        claim_name=name,
    )
    return Result(state=state)


def claim_requested(dv: DataVolume, actions: tuple[Action, ...], warnings: tuple[Event, ...] = ()) -> Result:
    """Return the state of a DataVolume whose PVC is requested by the actions."""
    state = DataVolumeState(
        phase=Phase.PENDING,
        bound=false(Reason.PENDING, f"PVC {dv.metadata.name} Pending"),
        running=false(),
        ready=false("", "; ".join(warning.message for warning in warnings)),
        claim_name=dv.metadata.name,
    )
    return Result(state=state, actions=actions, events=warnings)


def pending(claim: PVC | None, wait: Pending, phase: Phase = Phase.PENDING) -> Result:
    """Return the state of a DataVolume whose PVC is not bound."""
    if claim is not None:
        bound = bound_condition(claim)
    elif wait.event:
        bound = false(wait.event, wait.words or wait.message)
    else:
        bound = NOT_FOUND
    state = DataVolumeState(
        phase=phase,
        bound=bound,
        running=false(),
        ready=false(wait.reason, wait.message),
        claim_name=claim.name if claim is not None else None,
    )
    return Result(state=state, events=_wait_event(wait), pod="Pending" if claim else None)


def waiting_for_inputs(claim: PVC, wait: Pending) -> Result:
    """Return the state of a DataVolume whose PVC is bound but that waits for something else."""
    state = DataVolumeState(
        phase=Phase.PVC_BOUND,
        bound=bound_condition(claim),
        running=false(wait.reason, wait.message),
        ready=false(wait.reason, wait.message),
        claim_name=claim.name,
    )
    return Result(state=state, events=_wait_event(wait), pod="Pending")


def upload_ready(claim: PVC, failure: Failure | None) -> Result:
    """Return the state of waiting for an upload, again after a failed one."""
    message = f"waiting for: cdi upload -n {claim.namespace} {claim.name} FILE"
    state = DataVolumeState(
        phase=Phase.UPLOAD_READY,
        bound=bound_condition(claim),
        running=false(Reason.ERROR, f"{failure.message} Upload it again")
        if failure
        else false(Reason.PENDING, message),
        ready=false(failure.code, failure.message) if failure else false(Reason.PENDING, message),
        claim_name=claim.name,
    )
    return Result(state=state, pod="Running")


def _wait_event(wait: Pending) -> tuple[Event, ...]:
    message = f"{wait.words}: {wait.message}" if wait.words else wait.message
    return (Event(type="Warning", reason=wait.event, message=message),) if wait.event else ()


def bound_condition(claim: PVC) -> ConditionValue:
    """Return the Bound condition of a PVC."""
    condition = BOUND if claim.phase == "Bound" else PENDING
    return replace(condition, message=condition.message.format(name=claim.name))


def provisioning_event(prime: PVC | None, claim: PVC) -> str:
    """Return the provisioner's message about an unbound PVC, or about its prime PVC; empty if there is none."""
    if claim.phase == "Bound":
        return ""
    if prime is not None and prime.uid != claim.uid:
        event = prime.provisioning_message
        return PRIME_EVENT.format(prime=prime.name, event=event) if event else ""
    return claim.provisioning_message


def with_provisioning_event(prime: PVC | None, claim: PVC | None, state: DataVolumeState) -> DataVolumeState:
    """Return the state with the provisioner's message in Bound, if nothing else is there."""
    event = provisioning_event(prime, claim) if claim is not None else ""
    if claim is None or not event or state.bound != bound_condition(claim):
        return state
    message = PENDING_EVENT.message.format(name=claim.name, event=event)
    return replace(state, bound=replace(PENDING_EVENT, message=message))


def was_populated(dv: DataVolume) -> bool:
    """Return whether the DataVolume had its volume, which it still has unless its PVC or PersistentVolume is gone."""
    phase = dv.status.phase if dv.status is not None else None
    bound = find_condition(dv.status.conditions if dv.status else None, ConditionType.BOUND)
    return phase == Phase.SUCCEEDED or (
        phase == Phase.FAILED and bound is not None and bound.reason == Reason.CLAIM_LOST
    )


def phase_of(dv: DataVolume, imports: Phase, clones: Phase, uploaded: Phase) -> Phase:
    """Return the one of three phases that belongs to the DataVolume's operation."""
    operation = operation_of(dv)
    match operation:
        case "Import":
            return imports
        case "Clone":
            return clones
        case "Upload":
            return uploaded
        case _:
            assert_never(operation)


def progress_of(worker: Worker | None) -> str:
    """Return the value of ``status.progress``."""
    fraction = worker.progress.fraction if worker is not None and worker.progress is not None else None
    if fraction is None:
        return PROGRESS_UNKNOWN
    # 100.0% is reserved for a verified volume; receiving the last byte is not enough.
    return progress(min(fraction, 0.9999))


def claim_not_valid(context: ReconcileContext, error: CdiError) -> Result:
    """Return the state of waiting until the PVC can be completed.

    A DataVolume with the label applyStorageProfile leaves that to the webhook for PVCs in KubeVirt's CDI, so its PVC is
    missing, and events and conditions say no more. The controller completes every PVC itself, and its event about the
    cause follows the one that programs look for.
    """
    wait = Pending(reason=Reason.ERR_CLAIM_NOT_VALID, message=error.message, event=EventReason.ERR_CLAIM_NOT_VALID)
    result = replace(pending(None, wait), requeue_after=context.retries.patience)
    labels = context.datavolume.metadata.labels or {}
    if not context.config.renders_claims or labels.get(LABEL_APPLY_STORAGE_PROFILE) != "true":
        return result
    missing = false(Reason.NOT_FOUND, "No PVC found")
    return replace(
        result,
        state=replace(result.state, bound=missing),
        events=(Event(type="Normal", reason=missing.reason, message=missing.message), *result.events),
    )


def not_running(source: ResolvedSource, failure: Failure) -> ConditionValue:
    """Return the Running condition of a DataVolume whose last attempt failed.

    Its reason and the start of its message are those of KubeVirt's importer, which other programs compare. For example,
    virt-controller shows a virtual machine as DataVolumeError if Running is False with the reason ``Error`` or
    ``ImagePullFailed``.
    """
    kind = source.kind.value if isinstance(source, Import) else ""
    return false(_reason(failure, kind), condition_text(failure, kind))


def _reason(failure: Failure, kind: str) -> Reason:
    error = by_code(failure.code)
    if issubclass(error, ChecksumMismatch):
        return Reason.CHECKSUM_ERROR
    return Reason.IMAGE_PULL_FAILED if is_image_pull(error, kind) else Reason.ERROR
