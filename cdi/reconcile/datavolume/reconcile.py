"""Reconciler of DataVolumes.

    (new) ── Pending ── PVCBound ── ImportScheduled ── ImportInProgress ── Succeeded
                │          │        CloneScheduled     CloneInProgress  └─ Failed
                │          └─────── UploadScheduled    UploadReady
                └────────── WaitForFirstConsumer, PendingPopulation: until the volume has a consumer

The phase is derived from observed state: the PVC, its attempt history and the worker. A worker's result is written into
the ledger (`cdi.reconcile.datavolume.attempts`) before anything acts on it, so a lost action or a stale read at worst
repeats a step.
"""

from __future__ import annotations

from dataclasses import replace

from cdi.api.datavolume import DataVolume
from cdi.api.names import (
    ANN_POD_PHASE,
    propagates,
)
from cdi.api.phases import Phase, Reason
from cdi.reconcile.actions import PatchObject, Plan, RequireVersion
from cdi.reconcile.clone.host_assisted import merge_source_pod_status
from cdi.reconcile.clone.phases import mark_complete, release_prep_pod
from cdi.reconcile.clone.plan_annotation import by_storage
from cdi.reconcile.clone.planner import clean_up, next_step
from cdi.reconcile.clone.status import data_volume_marks
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import ANNOTATION, AttemptHistory
from cdi.reconcile.datavolume.claim_annotations import claim_patches
from cdi.reconcile.datavolume.claim_builder import populated_for
from cdi.reconcile.datavolume.create_claim import adopt_or_conflict, ensure_claim
from cdi.reconcile.datavolume.events import Events, events_for_transition
from cdi.reconcile.datavolume.next_attempt import (
    next_restarts_in_place,
    retry_or_fail,
    source_pod_actions,
    start_next_attempt,
    stop_outdated_worker,
    upload_requested,
)
from cdi.reconcile.datavolume.populate import (
    already_populated,
    ensure_prime,
    rebind_status,
    status_annotations,
    update_limits,
)
from cdi.reconcile.datavolume.provisioning import is_populated, worker_claim
from cdi.reconcile.datavolume.rebind import (
    Rebinding,
    VolumeLost,
    cleanup_actions,
    mark_populated,
    rebind_state,
    release_worker,
)
from cdi.reconcile.datavolume.rejection import apply_rejection
from cdi.reconcile.datavolume.result import (
    Result,
    claim_lost,
    failed,
    operation_of,
    pending,
    running,
    succeeded,
    waiting_for_inputs,
    was_populated,
    with_provisioning_event,
)
from cdi.reconcile.datavolume.retrying import shown_failure
from cdi.reconcile.datavolume.static_volume import check_static_binding
from cdi.reconcile.datavolume.status import render
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.reconcile.datavolume.upload_server import (
    delete_service,
    ensure_service,
    is_upload_withdrawn,
    ready_for_upload,
    upload_withdrawn,
)
from cdi.reconcile.source import resolve_source
from cdi.reconcile.types import PVC, Clone, ExternalPopulator, Operation, Pending, Rejected, ResolvedSource


def reconcile(context: ReconcileContext) -> Plan:
    """Return the plan for one reconcile.

    It is a pure function: no I/O, no clock, the same context gives the same plan.
    """
    dv = context.datavolume
    if dv.metadata.deletion_timestamp is not None:
        return Plan(actions=(*release_worker(context), *release_prep_pod(context)))
    claim = context.objects.claim(dv.metadata.namespace or "", dv.metadata.name or "")
    context = _with_own_worker(context, claim)
    source = resolve_source(context)
    result = _decide(context, claim, source)
    if context.refusal is not None:
        result = apply_rejection(context, claim, result, context.refusal)
    result = replace(result, state=with_provisioning_event(context.prime, claim, result.state))
    status = render(dv, result.state, context.now)
    before = dv.status.to_dict() if dv.status is not None else None
    changed = status != before
    actions = result.actions
    if claim is not None and _is_own(context, claim) and not claim.deleting:
        if context.platform.cluster:
            result = replace(
                result, annotations={**status_annotations(context, claim, result, status), **result.annotations}
            )
        first, later = claim_patches(claim, worker_claim(context, claim), result, context.worker)
        actions = (*first, *actions, *later)
        labels = None if context.synthetic else _inherited_labels(dv, claim)
        actions = (*actions, labels) if labels is not None else actions
        clones = context.platform.cluster and not context.synthetic and operation_of(dv) == "Clone"
        marks = data_volume_marks(dv, claim, result.annotations) if clones else None
        actions = (*actions, marks) if marks is not None else actions
    if claim is None and actions and context.platform.cluster and dv.status is not None:
        # The cached DataVolume may have been deleted. The garbage collector would then delete what is created for it,
        # whose event would have it created again. For a new one, the status write that always follows detects that.
        actions = (RequireVersion.of_object("datavolumes", dv.metadata), *actions)
    if _withdraws_final_phase(context, result.state.phase):
        absent = RequireVersion.of_absent_claim(dv.metadata.namespace or "", dv.metadata.name or "")
        actions = (absent if claim is None else RequireVersion.of_claim(claim), *actions)
    events = Events()
    if changed:
        events = events_for_transition(context, claim, source, operation_of(dv), result)
    return Plan(
        actions=actions,
        # A synthesized DataVolume does not exist in the API, so its events go to the PVC.
        events=(*events.steps, *events.claim) if context.synthetic else (*events.bound, *events.steps, *events.failure),
        claim_events=() if context.synthetic else events.claim,
        status=status if changed and not context.synthetic else None,
        requeue_after=result.requeue_after,
        wants_worker=result.wants_worker,
    )


def _withdraws_final_phase(context: ReconcileContext, phase: Phase) -> bool:
    """Return whether a DataVolume that has ended would continue, which the cached PVC, or none, does not justify alone.

    The watch of DataVolumes may be ahead of that of PVCs: another controller, whose term ends or has just ended, has
    written the final phase, and the cached PVC is that of the time before.
    """
    status = context.datavolume.status
    ended = status is not None and status.phase in (Phase.SUCCEEDED, Phase.FAILED)
    return ended and not phase.final and context.platform.cluster and not context.synthetic


def _is_own(context: ReconcileContext, claim: PVC) -> bool:
    return context.synthetic or claim.controller_uid == context.datavolume.metadata.uid


def _with_own_worker(context: ReconcileContext, claim: PVC | None) -> ReconcileContext:
    """Drop a worker whose pod belongs to an earlier PVC of the same name."""
    pod = context.worker.pod if context.worker is not None else None
    if pod is None:
        return context
    filled = worker_claim(context, claim) if claim is not None else None
    return context if filled is not None and filled.uid == pod.claim else replace(context, worker=None)


def _inherited_labels(dv: DataVolume, claim: PVC) -> PatchObject | None:
    """Return a patch with KubeVirt's own labels that the PVC inherited from the source.

    Labels that the DataVolume already has are kept.
    """
    own = dv.metadata.labels or {}
    labels = {name: text for name, text in claim.labels.items() if propagates(name) and name not in own}
    if not labels:
        return None
    return PatchObject.of_data_volume(dv, labels=labels)


def _decide(context: ReconcileContext, claim: PVC | None, source: ResolvedSource) -> Result:
    dv = context.datavolume
    if claim is None:
        return ensure_claim(context, source)
    if not _is_own(context, claim):
        return adopt_or_conflict(context, claim)
    if claim.deleting:
        return replace(_being_deleted(context, claim, source), actions=release_worker(context))
    if claim.phase == "Lost":
        return claim_lost(dv, claim.name)
    if populated_for(claim, dv):
        return already_populated(context, claim)
    return check_static_binding(context, claim) or _with_claim(context, claim, source)


def _being_deleted(context: ReconcileContext, claim: PVC, source: ResolvedSource) -> Result:
    """Return the state of a PVC that is being deleted: what it was, as pods may use its volume for a long time yet."""
    dv = context.datavolume
    if claim.phase == "Lost" and was_populated(dv):
        return claim_lost(dv, claim.name)
    if was_populated(dv):
        kept = already_populated(context, claim) if populated_for(claim, dv) else None
        return kept or succeeded(claim, _record_attempt(context, claim), "", operation=_completed_operation(dv, source))
    return pending(claim, Pending(reason=Reason.PENDING, message=f"PVC {claim.name} is being deleted"))


# --- the DataVolume's own PVC -----------------------------------------------------------------------------------


def _with_claim(context: ReconcileContext, claim: PVC, source: ResolvedSource) -> Result:
    worker = context.worker
    recorded = _record_attempt(context, claim)
    previous = recorded.with_result(worker.previous if worker is not None else None)
    attempts = previous.with_result(worker)
    settled: Rebinding | VolumeLost | Rejected | None = None
    if is_populated(context.platform, claim):
        attempts = mark_complete(context, claim, mark_populated(context, claim, attempts))
        settled = rebind_state(context, claim, attempts) if attempts.done else None
        if isinstance(settled, VolumeLost):
            attempts = attempts.reset()
    request = upload_requested(context.platform, claim)
    if request is not None and not attempts.done and request.id != attempts.upload and not (worker and worker.running):
        attempts = attempts.for_upload(request.id)
    result = _follow(context, claim, source, attempts, request, settled, news=attempts.attempt > recorded.attempt)
    if previous.attempt > recorded.attempt:
        result = replace(result, unseen=previous.failure)
    final = result.state.phase.final
    restarts = not final and next_restarts_in_place(context, claim, source, attempts)
    cleanup = cleanup_actions(context, claim, attempts, final=final, restarts=restarts)
    result = replace(result, actions=(*result.actions, *clean_up(context, claim, attempts, final=final), *cleanup))
    # If the storage created the volume, the volume records everything. An unbound PVC is not written, because each
    # write makes every provisioner sync it and record an Event.
    told_by_volume = isinstance(settled, Rebinding) and by_storage(claim) is not None
    if attempts != recorded and not told_by_volume:
        # The first action writes the attempt history, so no action that depends on it is applied without it.
        result = replace(result, attempts=attempts)
    count = max(0, max(attempts.attempt, worker.attempt if worker else 0) - 1)
    return replace(result, state=replace(result.state, restarts=count))


def _record_attempt(context: ReconcileContext, claim: PVC) -> AttemptHistory:
    """Return the recorded ledger; for a volume that another importer filled earlier, a ledger that is done."""
    text = claim.annotations.get(ANNOTATION)
    if text is None and context.platform.cluster and context.worker is None and claim.phase == "Bound":
        told = claim.annotations.get(ANN_POD_PHASE) == "Succeeded"
        if told or (was_populated(context.datavolume) and not context.synthetic):
            return AttemptHistory(done=True)
    return AttemptHistory.read(text)


def _follow(
    context: ReconcileContext,
    claim: PVC,
    source: ResolvedSource,
    attempts: AttemptHistory,
    request: UploadRequest | None,
    settled: Rebinding | VolumeLost | Rejected | None,
    *,
    news: bool,
) -> Result:
    """Return the result for a PVC.

    Args:
        context: The observed state.
        claim: The PVC.
        source: The DataVolume's source.
        attempts: Its attempt history, updated with the worker's result.
        request: The upload request of a local client.
        settled: State of rebinding the volume, if the PVC uses a populator and its content is complete.
        news: Whether the end of the last attempt was not recorded before.

    """
    dv, worker = context.datavolume, context.worker
    if isinstance(settled, Rejected):
        return failed(claim, settled.failure)
    if attempts.done:
        news = worker is not None and worker.outcome is not None and worker.attempt == attempts.attempt
        outcome = worker.outcome if worker is not None and news else None
        if isinstance(settled, Rebinding):
            return replace(rebind_status(context, claim, settled.actions), outcome=outcome)
        return succeeded(claim, attempts, "", outcome, operation=_completed_operation(dv, source))
    if is_upload_withdrawn(context, claim, worker_claim(context, claim)):
        return _withdrawn(context, claim)
    replaced = (
        worker is not None
        and worker.pod is not None
        and worker.pod.restarted
        and attempts.failure is not None
        and not next_restarts_in_place(context, claim, source, attempts)
    )
    if worker is not None and worker.running and worker.attempt > attempts.attempt and not replaced:
        at_it = running(dv, claim, source, worker, shown_failure(dv, attempts))
        reading, message = source_pod_actions(context, claim, source, worker)
        actions = (*update_limits(dv, worker), *stop_outdated_worker(context, claim, source, worker), *reading)
        actions = (*actions, *ensure_service(context, worker_claim(context, claim)))
        return ready_for_upload(
            context, claim, worker, merge_source_pod_status(replace(at_it, actions=actions), message)
        )
    if attempts.failure is not None:
        result = retry_or_fail(context, claim, source, attempts, attempts.failure, news=news)
        if result is not None:
            return result
    if context.platform.cluster:
        result = (
            next_step(context, claim, source) if isinstance(source, Clone) else ensure_prime(context, claim, source)
        )
        if result is not None:
            return result
    elif claim.phase != "Bound":
        return pending(claim, Pending(reason=Reason.PENDING, message=claim.provisioning_message))
    return start_next_attempt(context, claim, source, attempts, request)


def _withdrawn(context: ReconcileContext, claim: PVC) -> Result:
    """Stop the upload server of a PVC whose request for an upload was removed."""
    wait = upload_withdrawn(claim)
    result = waiting_for_inputs(claim, wait) if claim.phase == "Bound" else pending(claim, wait)
    actions = (*release_worker(context), *delete_service(context.service, worker_claim(context, claim)))
    return replace(result, actions=actions)


def _completed_operation(dv: DataVolume, source: ResolvedSource) -> Operation | None:
    """Return the operation that has filled the PVC; None if another populator has."""
    return None if isinstance(source, ExternalPopulator) else operation_of(dv)
