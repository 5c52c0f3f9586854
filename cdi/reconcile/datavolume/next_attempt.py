"""The next attempt to fill a PVC: what it needs, when it starts, and which pods of the last one stop."""

from __future__ import annotations

from dataclasses import replace

from cdi.api.annotations import UPLOAD_REQUEST
from cdi.api.errors import CdiError, InvalidManifest, Retry
from cdi.api.job import Failure
from cdi.api.phases import Phase, Reason
from cdi.reconcile.actions import Action, StartWorker
from cdi.reconcile.clone.host_assisted import (
    ensure_source_pod,
    is_copied,
    prepare_copy,
)
from cdi.reconcile.clone.snapshot_restore import restore
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.populate import (
    ensure_scratch,
    for_pods,
    in_use,
    is_stuck,
    restarts_in_place,
    scratch_deleted,
    start_worker_pod,
    template_changed,
)
from cdi.reconcile.datavolume.provisioning import worker_claim
from cdi.reconcile.datavolume.rebind import (
    stopped,
)
from cdi.reconcile.datavolume.result import (
    Result,
    bound_condition,
    failed,
    failing,
    operation_of,
    pending,
    phase_of,
    progress_of,
    upload_ready,
    waiting_for_inputs,
)
from cdi.reconcile.datavolume.retrying import ended, paused, shown_failure
from cdi.reconcile.datavolume.status import DataVolumeState, false
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.reconcile.datavolume.upload_server import (
    service_conflict,
)
from cdi.reconcile.pods.job import WorkerSpec, prepare, with_attempt
from cdi.reconcile.pods.types import Worker
from cdi.reconcile.settings import Platform
from cdi.reconcile.source import check_copied_source
from cdi.reconcile.types import PVC, Clone, Pending, Rejected, ResolvedSource, Upload


def upload_requested(platform: Platform, claim: PVC) -> UploadRequest | None:
    """Return the upload request of a client on this machine; in a cluster clients connect to the worker itself."""
    return None if platform.cluster else UPLOAD_REQUEST.read(UploadRequest, claim.annotations)


def start_next_attempt(
    context: ReconcileContext,
    claim: PVC,
    source: ResolvedSource,
    attempts: AttemptHistory,
    request: UploadRequest | None,
) -> Result:
    dv = context.datavolume
    prepared = _prepare_job(context, claim, source)
    if prepared is None:
        return upload_ready(claim, None)
    if isinstance(prepared, WorkerSpec):
        prepared = in_use(context, claim) or service_conflict(context, worker_claim(context, claim)) or prepared
    if isinstance(prepared, Rejected):
        return failed(claim, prepared.failure)
    if isinstance(prepared, Pending):
        if claim.phase != "Bound":
            return pending(claim, prepared)
        return waiting_for_inputs(claim, prepared)
    upload = request.id if request is not None and operation_of(dv) == "Upload" else ""
    number = max(attempts.attempt, context.worker.attempt if context.worker else 0) + 1
    reason, message = ("", "") if context.has_worker_slot else (Reason.PENDING, context.queue_message)
    actions: tuple[Action, ...] = ()
    if context.worker is not None and context.worker.pod is not None:
        reason, message = Reason.PENDING, f"Pod {context.worker.pod.name} of the last attempt is being deleted"
    elif context.has_worker_slot:
        try:
            actions = _start(context, claim, with_attempt(prepared, number), number, upload)
        except InvalidManifest as error:
            return failed(claim, Failure.from_error(error))
    # The client was shown UploadReady before it sent anything, and phases do not go back.
    uploaded = Phase.UPLOAD_READY if upload else Phase.UPLOAD_SCHEDULED
    last = shown_failure(dv, attempts)
    if last is not None and context.has_worker_slot:
        result = failing(dv, claim, source, last, context.worker)
    else:
        state = DataVolumeState(
            phase=phase_of(dv, Phase.IMPORT_SCHEDULED, Phase.CLONE_SCHEDULED, uploaded),
            bound=bound_condition(claim),
            running=false(reason, message),
            ready=false(reason, message),
            claim_name=claim.name,
            progress=progress_of(context.worker),
        )
        result = Result(state=state, pod="Pending")
    return replace(
        result,
        actions=actions,
        wants_worker=not context.has_worker_slot,
        # An unrelated pod of that name causes no event for this object when it is deleted, so poll.
        requeue_after=context.retries.patience if context.platform.cluster else None,
    )


def _start(context: ReconcileContext, claim: PVC, prepared: WorkerSpec, number: int, upload: str) -> tuple[Action, ...]:
    if context.platform.cluster:
        filled = worker_claim(context, claim)
        assert filled is not None
        return start_worker_pod(context, claim, filled, prepared, number, upload)
    start = StartWorker(
        claim=claim.uid,
        namespace=claim.namespace,
        attempt=number,
        work=prepared.work,
        mounts=prepared.mounts,
        fingerprint=prepared.fingerprint,
        upload=upload,
    )
    return (start,)


def _prepare_job(
    context: ReconcileContext, claim: PVC, origin: ResolvedSource
) -> WorkerSpec | Pending | Rejected | None:
    """Return the work of the next attempt; None if an upload must be requested first or there is no PVC to fill yet."""
    filled = worker_claim(context, claim)
    if filled is None:
        return None
    if context.platform.cluster:
        context = for_pods(context, filled)
    if isinstance(origin, Pending | Rejected):
        return origin
    if isinstance(origin, Clone) and context.platform.cluster:
        assert context.layout is not None
        try:
            return prepare_copy(context, claim, filled, origin, context.layout)
        except CdiError as error:
            return Rejected.because(error)
    source: PVC | None = None
    if isinstance(origin, Clone):
        found = check_copied_source(context, origin)
        if isinstance(found, Pending | Rejected):
            return found
        source = found
    request = upload_requested(context.platform, claim)
    if isinstance(origin, Upload) and request is None and not context.platform.cluster:
        return None
    try:
        return prepare(context, filled, origin, source=source, upload=request)
    except CdiError as error:
        return Rejected.because(error)


def retry_or_fail(
    context: ReconcileContext,
    claim: PVC,
    source: ResolvedSource,
    attempts: AttemptHistory,
    failure: Failure,
    *,
    news: bool,
) -> Result | None:
    """Return the state after a failed attempt; None if the next attempt is due.

    A failure that was not recorded before is always shown first, however late it is observed.
    """
    end = ended(claim, source, attempts, failure, context.retries)
    if end is not None:
        return end
    if operation_of(context.datavolume) == "Upload" and not context.platform.cluster:
        request = upload_requested(context.platform, claim)
        if request is None or request.path is None:
            return upload_ready(claim, failure)
    scratch = ensure_scratch(context, claim, attempts)
    if scratch is not None:
        return scratch
    if failure.retry is Retry.ON_CHANGE:
        prepared = _prepare_job(context, claim, source)
        if isinstance(prepared, WorkerSpec) and prepared.fingerprint != attempts.fingerprint:
            return None
    pause = paused(context, claim, source, attempts, failure)
    if next_restarts_in_place(context, claim, source, attempts):
        # The kubelet chooses when; the pod's status changes then.
        return replace(pause, requeue_after=None)
    return pause if pause.requeue_after or news else None


def next_restarts_in_place(
    context: ReconcileContext, claim: PVC, source: ResolvedSource, attempts: AttemptHistory
) -> bool:
    """Return whether the kubelet restarts the worker's container for the next attempt."""
    worker, failure = context.worker, attempts.failure
    if worker is None or worker.pod is None or not worker.pod.restarts or failure is None:
        return False
    if ended(claim, source, attempts, failure, context.retries) is not None or in_use(context, claim) is not None:
        return False
    prepared = _prepare_job(context, claim, source)
    return isinstance(prepared, WorkerSpec) and restarts_in_place(context, claim, prepared, worker, failure)


def stop_outdated_worker(
    context: ReconcileContext, claim: PVC, source: ResolvedSource, worker: Worker
) -> tuple[Action, ...]:
    """Return the action that stops a pod that cannot start, if its template has changed or its scratch PVC is deleted.

    What blocks the pod may have been corrected since in CDI, CDIConfig or the controller's options.
    """
    pod, filled = worker.pod, worker_claim(context, claim)
    if pod is None or filled is None:
        return ()
    if scratch_deleted(context.scratch, pod):
        return (stopped(filled.namespace, pod),)
    if not is_stuck(pod):
        return ()
    prepared = _prepare_job(context, claim, source)
    if not isinstance(prepared, WorkerSpec):
        return ()
    try:
        return template_changed(context, claim, filled, prepared, worker)
    except InvalidManifest:
        return ()


def source_pod_actions(
    context: ReconcileContext, claim: PVC, source: ResolvedSource, worker: Worker
) -> tuple[tuple[Action, ...], str]:
    """Return, for a host-assisted clone, the source pod's actions and the reason why the source pod is not running."""
    filled = worker_claim(context, claim)
    if context.clones is None or filled is None or is_copied(claim) is None or not isinstance(source, Clone):
        return (), ""
    reading, message = ensure_source_pod(context, claim, filled, source, worker)
    return (*restore(context, claim, source), *reading), message
