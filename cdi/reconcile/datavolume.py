"""Reconciler of DataVolumes.

    (new) ── Pending ── PVCBound ── ImportScheduled ── ImportInProgress ── Succeeded
                │          │        CloneScheduled     CloneInProgress  └─ Failed
                │          └─────── UploadScheduled    UploadReady
                └────────── WaitForFirstConsumer, PendingPopulation: until the volume has a consumer

The phase is derived from observed state: the PVC, its ledger and the worker. A worker's result is written into the
ledger (`cdi.reconcile.ledger`) before anything acts on it, so a lost action or a stale read at worst repeats a step.
"""

from __future__ import annotations

from dataclasses import replace

from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, InvalidManifest, Retry
from cdi.api.job import Failure
from cdi.api.names import (
    ANN_POD_PHASE,
    propagates,
)
from cdi.api.phases import Phase, Reason
from cdi.reconcile import upload as uploads
from cdi.reconcile.actions import Action, PatchObject, Plan, StartWorker
from cdi.reconcile.arrival import foreign_claim, without_claim
from cdi.reconcile.binding import filled_claim, is_populated
from cdi.reconcile.claim import populated_for
from cdi.reconcile.clone.copying import cleared_reader, is_copied, prepare_copy, served, with_reader
from cdi.reconcile.clone.flow import advance, cleared_preparation, made, unprepared
from cdi.reconcile.clone.record import by_storage
from cdi.reconcile.clone.restored import restore
from cdi.reconcile.decision import (
    Decision,
    bound_aspect,
    claim_lost,
    failed,
    failing,
    held_up,
    is_settled,
    operation_of,
    pending,
    phase_of,
    progress_of,
    running,
    succeeded,
    upload_ready,
)
from cdi.reconcile.events import Events, told
from cdi.reconcile.failure import as_failure
from cdi.reconcile.filling import (
    before_filling,
    cannot_begin,
    for_pods,
    in_pod,
    in_use,
    lost_scratch,
    marks,
    outdated,
    rebinding,
    relimited,
    scratch_first,
    there_already,
)
from cdi.reconcile.job import Prepared, for_attempt, prepare
from cdi.reconcile.ledger import ANNOTATION, Ledger
from cdi.reconcile.origin import Clone, Refuse, Upload, Wait, examine_clone, find_origin
from cdi.reconcile.population import Gone, Rebinding, cleared, released, seal, settle, stopped
from cdi.reconcile.record import claim_patches
from cdi.reconcile.refusal import refused
from cdi.reconcile.retrying import ended, paused, shown_failure
from cdi.reconcile.static import until_static
from cdi.reconcile.status import State, no, render
from cdi.reconcile.upload import UploadRequest
from cdi.reconcile.uploading import ready_for_upload, service_kept, unreachable
from cdi.reconcile.world import Claim, Worker, World


def reconcile(world: World) -> Plan:
    """Return the plan for one reconcile.

    It is a pure function: no I/O, no clock, the same world gives the same plan.
    """
    dv = world.datavolume
    if dv.metadata.deletion_timestamp is not None:
        return Plan(actions=(*released(world), *unprepared(world)))
    claim = world.objects.claim(dv.metadata.namespace or "", dv.metadata.name or "")
    world = _with_own_worker(world, claim)
    decision = _decide(world, claim)
    if world.refusal is not None:
        decision = refused(world, claim, decision, world.refusal)
    status = render(dv, decision.state, world.now)
    before = dv.status.to_dict() if dv.status is not None else None
    changed = status != before
    actions = decision.actions
    if claim is not None and _is_own(world, claim) and not claim.deleting:
        if world.platform.cluster:
            decision = replace(decision, marks={**marks(world, claim, decision, status), **decision.marks})
        first, later = claim_patches(claim, filled_claim(world, claim), decision, world.worker)
        actions = (*first, *actions, *later)
        labels = None if world.synthetic else _inherited_labels(dv, claim)
        actions = (*actions, labels) if labels is not None else actions
    events = told(dv, operation_of(dv), decision.state, decision.events) if changed else Events()
    return Plan(
        actions=actions,
        # A synthesized DataVolume does not exist in the API, so its events go to the PVC.
        events=(*events.steps, *events.claim) if world.synthetic else (*events.steps, *events.failure),
        claim_events=() if world.synthetic else events.claim,
        status=status if changed and not world.synthetic else None,
        requeue_after=decision.requeue_after,
        wants_worker=decision.wants_worker,
    )


def _is_own(world: World, claim: Claim) -> bool:
    return world.synthetic or claim.controller_uid == world.datavolume.metadata.uid


def _with_own_worker(world: World, claim: Claim | None) -> World:
    """Drop a worker whose pod belongs to an earlier PVC of the same name."""
    pod = world.worker.pod if world.worker is not None else None
    if pod is None:
        return world
    filled = filled_claim(world, claim) if claim is not None else None
    return world if filled is not None and filled.uid == pod.claim else replace(world, worker=None)


def _inherited_labels(dv: DataVolume, claim: Claim) -> PatchObject | None:
    """Return a patch with KubeVirt's own labels that the PVC inherited from the source.

    Labels that the DataVolume already has are kept.
    """
    own = dv.metadata.labels or {}
    labels = {name: text for name, text in claim.labels.items() if propagates(name) and name not in own}
    if not labels:
        return None
    return PatchObject(
        plural="datavolumes",
        namespace=dv.metadata.namespace or "",
        name=dv.metadata.name or "",
        uid=dv.metadata.uid or "",
        labels=labels,
    )


def _decide(world: World, claim: Claim | None) -> Decision:
    dv = world.datavolume
    if claim is None:
        return without_claim(world)
    if not _is_own(world, claim):
        return foreign_claim(world, claim)
    if claim.deleting:
        going = pending(claim, Wait(reason=Reason.PENDING, message=f"PVC {claim.name} is being deleted"))
        decision = claim_lost(dv, claim.name) if is_settled(dv) else going
        return replace(decision, actions=released(world))
    if claim.phase == "Lost":
        return claim_lost(dv, claim.name)
    if populated_for(claim, dv):
        return there_already(world, claim)
    return until_static(world, claim) or _with_claim(world, claim)


# --- the DataVolume's own PVC -----------------------------------------------------------------------------------


def _with_claim(world: World, claim: Claim) -> Decision:
    worker = world.worker
    recorded = _recorded(world, claim)
    ledger = recorded.after(worker)
    settled: Rebinding | Gone | Refuse | None = None
    if is_populated(world, claim):
        ledger = made(world, claim, seal(world, claim, ledger))
        settled = settle(world, claim, ledger) if ledger.done else None
        if isinstance(settled, Gone):
            ledger = ledger.begun_anew()
    request = _request(world, claim)
    if request is not None and not ledger.done and request.id != ledger.upload and not (worker and worker.running):
        ledger = ledger.for_upload(request.id)
    decision = _follow(world, claim, ledger, request, settled, news=ledger.attempt > recorded.attempt)
    final = decision.state.phase.final
    left: tuple[Action, ...] = ()
    if world.clones is not None:
        left = cleared_reader(world, claim, ledger, final=final)
        left += cleared_preparation(world, claim, ledger, final=final)
    decision = replace(decision, actions=(*decision.actions, *left, *cleared(world, claim, ledger, final=final)))
    if world.platform.cluster and any(isinstance(action, StartWorker) for action in decision.actions):
        ledger = ledger.begins()
    # If the storage created the volume, the volume records everything. An unbound PVC is not written, because each
    # write makes every provisioner sync it and record an Event.
    told_by_volume = isinstance(settled, Rebinding) and by_storage(claim) is not None
    if ledger != recorded and not told_by_volume:
        # The first action writes the ledger, so no action that depends on it is applied without it.
        decision = replace(decision, ledger=ledger)
    restarts = max(0, max(ledger.attempt, worker.attempt if worker else 0) - 1)
    return replace(decision, state=replace(decision.state, restarts=restarts))


def _recorded(world: World, claim: Claim) -> Ledger:
    """Return the recorded ledger; for a volume that another importer filled earlier, a ledger that is done."""
    text = claim.annotations.get(ANNOTATION)
    if text is None and world.platform.cluster and world.worker is None and claim.phase == "Bound":
        told = claim.annotations.get(ANN_POD_PHASE) == "Succeeded"
        if told or (is_settled(world.datavolume) and not world.synthetic):
            return Ledger(done=True)
    return Ledger.read(text)


def _follow(
    world: World,
    claim: Claim,
    ledger: Ledger,
    request: UploadRequest | None,
    settled: Rebinding | Gone | Refuse | None,
    *,
    news: bool,
) -> Decision:
    """Return the decision for a PVC.

    Args:
        world: The observed state.
        claim: The PVC.
        ledger: Its ledger, updated with the worker's result.
        request: The upload request of a local client.
        settled: State of rebinding the volume, if the PVC uses a populator and its content is complete.
        news: Whether the end of the last attempt was not recorded before.

    """
    worker = world.worker
    if isinstance(settled, Refuse):
        return failed(claim, settled.failure)
    if ledger.done:
        news = worker is not None and worker.outcome is not None and worker.attempt == ledger.attempt
        outcome = worker.outcome if worker is not None and news else None
        if isinstance(settled, Rebinding):
            return replace(rebinding(world, claim, settled.actions), outcome=outcome)
        return succeeded(claim, ledger, "", outcome)
    if worker is not None and worker.running and worker.attempt > ledger.attempt:
        at_it = running(world, claim, worker, shown_failure(world, ledger))
        reading, message = _reading(world, claim, worker)
        actions = (*relimited(world, worker), *_superseded(world, claim, worker), *reading)
        actions = (*actions, *service_kept(world, filled_claim(world, claim)))
        return ready_for_upload(world, claim, worker, with_reader(replace(at_it, actions=actions), message))
    if ledger.failure is not None:
        decision = _after_failure(world, claim, ledger, ledger.failure, news=news)
        if decision is not None:
            return decision
    if world.platform.cluster:
        origin = find_origin(world)
        decision = advance(world, claim, origin) if isinstance(origin, Clone) else None
        decision = decision or before_filling(world, claim)
        if decision is not None:
            return decision
    elif claim.phase != "Bound":
        return pending(claim, Wait(reason=Reason.PENDING, message=claim.why_pending))
    return _next_attempt(world, claim, ledger, request)


def _request(world: World, claim: Claim) -> UploadRequest | None:
    """Return the upload request of a client on this machine; in a cluster clients connect to the worker itself."""
    return None if world.platform.cluster else UploadRequest.read(claim.annotations.get(uploads.ANNOTATION))


def _reading(world: World, claim: Claim, worker: Worker) -> tuple[tuple[Action, ...], str]:
    """Return, for a host-assisted clone, the source pod's actions and the reason why the source pod is not running."""
    filled = filled_claim(world, claim)
    if world.clones is None or filled is None or is_copied(claim) is None:
        return (), ""
    origin = find_origin(world)
    if not isinstance(origin, Clone):
        return (), ""
    reading, message = served(world, claim, filled, origin, worker)
    return (*restore(world, claim, origin), *reading), message


def _superseded(world: World, claim: Claim, worker: Worker) -> tuple[Action, ...]:
    """Return the action that stops a pod that cannot start, if its template has changed or its scratch PVC is deleted.

    What blocks the pod may have been corrected since in CDI, CDIConfig or the controller's options.
    """
    pod, filled = worker.pod, filled_claim(world, claim)
    if pod is None or filled is None:
        return ()
    if lost_scratch(world, pod):
        return (stopped(filled.namespace, pod),)
    if not cannot_begin(pod):
        return ()
    prepared = _prepared(world, claim)
    if not isinstance(prepared, Prepared):
        return ()
    try:
        return outdated(world, claim, filled, prepared, worker)
    except InvalidManifest:
        return ()


def _after_failure(world: World, claim: Claim, ledger: Ledger, failure: Failure, *, news: bool) -> Decision | None:
    """Return the state after a failed attempt; None if the next attempt is due.

    A failure that was not recorded before is always shown first, however late it is observed.
    """
    end = ended(world, claim, ledger, failure)
    if end is not None:
        return end
    if operation_of(world.datavolume) == "Upload" and not world.platform.cluster:
        request = _request(world, claim)
        if request is None or request.path is None:
            return upload_ready(claim, failure)
    scratch = scratch_first(world, claim, ledger)
    if scratch is not None:
        return scratch
    if failure.retry is Retry.ON_CHANGE:
        prepared = _prepared(world, claim)
        if isinstance(prepared, Prepared) and prepared.fingerprint != ledger.fingerprint:
            return None
    pause = paused(world, claim, ledger, failure)
    return pause if pause.requeue_after or news else None


def _prepared(world: World, claim: Claim) -> Prepared | Wait | Refuse | None:
    """Return the work of the next attempt; None if an upload must be requested first or there is no PVC to fill yet."""
    filled = filled_claim(world, claim)
    if filled is None:
        return None
    if world.platform.cluster:
        world = for_pods(world, filled)
    origin = find_origin(world)
    if isinstance(origin, Wait | Refuse):
        return origin
    if isinstance(origin, Clone) and world.platform.cluster:
        assert world.layout is not None
        try:
            return prepare_copy(world, claim, filled, origin, world.layout)
        except CdiError as error:
            return Refuse.because(error)
    source: Claim | None = None
    if isinstance(origin, Clone):
        found = examine_clone(world, origin)
        if isinstance(found, Wait | Refuse):
            return found
        source = found
    request = _request(world, claim)
    if isinstance(origin, Upload) and request is None and not world.platform.cluster:
        return None
    try:
        return prepare(world, filled, origin, source=source, upload=request)
    except CdiError as error:
        return Refuse.because(error)


def _next_attempt(world: World, claim: Claim, ledger: Ledger, request: UploadRequest | None) -> Decision:
    dv = world.datavolume
    prepared = _prepared(world, claim)
    if prepared is None:
        return upload_ready(claim, None)
    if isinstance(prepared, Prepared):
        prepared = in_use(world, claim) or unreachable(world, filled_claim(world, claim)) or prepared
    if isinstance(prepared, Refuse):
        return failed(claim, prepared.failure)
    if isinstance(prepared, Wait):
        if claim.phase != "Bound":
            return pending(claim, prepared)
        return held_up(claim, prepared)
    upload = request.id if request is not None and operation_of(dv) == "Upload" else ""
    number = max(ledger.attempt, world.worker.attempt if world.worker else 0) + 1
    reason, message = ("", "") if world.admitted else (Reason.PENDING, world.turn)
    actions: tuple[Action, ...] = ()
    if world.worker is not None and world.worker.pod is not None:
        reason, message = Reason.PENDING, f"Pod {world.worker.pod.name} of the last attempt is being deleted"
    elif world.admitted:
        try:
            actions = _start(world, claim, for_attempt(prepared, number), number, upload)
        except InvalidManifest as error:
            return failed(claim, as_failure(error))
    # The client was shown UploadReady before it sent anything, and phases do not go back.
    uploaded = Phase.UPLOAD_READY if upload else Phase.UPLOAD_SCHEDULED
    last = shown_failure(world, ledger)
    if last is not None and world.admitted:
        decision = failing(world, claim, last, world.worker)
    else:
        state = State(
            phase=phase_of(dv, Phase.IMPORT_SCHEDULED, Phase.CLONE_SCHEDULED, uploaded),
            bound=bound_aspect(claim),
            running=no(reason, message),
            ready=no(reason, message),
            claim_name=claim.name,
            progress=progress_of(world.worker),
        )
        decision = Decision(state=state, pod="Pending")
    return replace(
        decision,
        actions=actions,
        wants_worker=not world.admitted,
        # An unrelated pod of that name causes no event for this object when it is deleted, so poll.
        requeue_after=world.retries.patience if world.platform.cluster else None,
    )


def _start(world: World, claim: Claim, prepared: Prepared, number: int, upload: str) -> tuple[Action, ...]:
    if world.platform.cluster:
        filled = filled_claim(world, claim)
        assert filled is not None
        return in_pod(world, claim, filled, prepared, number, upload)
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
