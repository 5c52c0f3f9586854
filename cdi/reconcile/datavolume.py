"""What becomes of a DataVolume.

    (new) ── Pending ── PVCBound ── ImportScheduled ── ImportInProgress ── Succeeded
                           │        CloneScheduled     CloneInProgress  └─ Failed
                           └─────── UploadScheduled    UploadReady

The phase follows from what is observed: the claim, what the claim's ledger remembers, and the worker.  What a worker
told is written into the ledger (`cdi.reconcile.ledger`) before anything follows from it, so losing any action, or
seeing an old state, at worst repeats a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from cdi.api.conditions import find_condition
from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, CdiError, ClaimLost, InvalidManifest, Retry
from cdi.api.job import Failure, Outcome
from cdi.api.names import (
    ANN_ALLOW_CLAIM_ADOPTION,
    ANN_POPULATED_FOR,
    ANN_PRE_POPULATED,
    propagates,
)
from cdi.api.phases import PROGRESS_DONE, PROGRESS_UNKNOWN, ConditionType, Phase, Reason, progress
from cdi.reconcile import upload as uploads
from cdi.reconcile.actions import Action, CreateClaim, EventFact, PatchObject, Plan, StartWorker
from cdi.reconcile.claim import build_claim, owner_reference, populated_for
from cdi.reconcile.events import told
from cdi.reconcile.failure import as_failure
from cdi.reconcile.job import Prepared, prepare
from cdi.reconcile.ledger import ANNOTATION, Ledger
from cdi.reconcile.origin import Clone, Refuse, Upload, Wait, examine_clone, find_origin
from cdi.reconcile.policy import read_knobs
from cdi.reconcile.record import claim_patch, verified_by
from cdi.reconcile.status import Aspect, State, no, render, yes
from cdi.reconcile.upload import UploadRequest
from cdi.reconcile.world import Claim, Operation, Worker, World

_MESSAGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    state: State
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    wants_worker: bool = False
    events: tuple[EventFact, ...] = ()
    pod: str | None = None
    """For the claim's ``storage.pod.phase``; None leaves it."""
    ledger: Ledger | None = None
    outcome: Outcome | None = None
    """Of an import that has just succeeded."""


def reconcile(world: World) -> Plan:
    """One step: no I/O, no clock, the same world gives the same plan."""
    dv = world.datavolume
    if dv.metadata.deletion_timestamp is not None:
        return Plan()
    claim = world.objects.claim(dv.metadata.namespace or "", dv.metadata.name or "")
    decision = _decide(world, claim)
    actions = decision.actions
    if claim is not None and claim.controller_uid == dv.metadata.uid and not claim.deleting:
        patch = claim_patch(
            claim, state=decision.state, pod=decision.pod, ledger=decision.ledger, outcome=decision.outcome
        )
        actions = (patch, *actions) if patch is not None else actions
        labels = _inherited_labels(dv, claim)
        actions = (*actions, labels) if labels is not None else actions
    status = render(dv, decision.state, world.now)
    before = dv.status.to_dict() if dv.status is not None else None
    changed = status != before
    return Plan(
        actions=actions,
        events=told(dv, operation_of(dv), decision.state, decision.events) if changed else (),
        status=status if changed else None,
        requeue_after=decision.requeue_after,
        wants_worker=decision.wants_worker,
    )


def _inherited_labels(dv: DataVolume, claim: Claim) -> PatchObject | None:
    """KubeVirt's own labels go from the source to the claim and on to the DataVolume; what it says itself stays."""
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


def operation_of(dv: DataVolume) -> Operation:
    if dv.spec.is_clone:
        return "Clone"
    return "Upload" if dv.spec.source is not None and dv.spec.source.upload is not None else "Import"


# --- before there is a claim ------------------------------------------------------------------------------------


def _decide(world: World, claim: Claim | None) -> _Decision:
    dv = world.datavolume
    if claim is None:
        return _without_claim(world)
    if claim.controller_uid != dv.metadata.uid:
        return _foreign_claim(world, claim)
    if claim.deleting:
        if _is_settled(dv):
            return _claim_lost(dv, claim.name)
        return _pending(claim, Wait(reason=Reason.PENDING, message=f"PVC {claim.name} is being deleted"))
    if claim.phase == "Lost":
        return _claim_lost(dv, claim.name)
    if populated_for(claim, dv):
        return _succeeded(claim, Ledger(), "the volume was there already")
    return _with_claim(world, claim)


def _without_claim(world: World) -> _Decision:
    dv = world.datavolume
    if _is_settled(dv):
        return _claim_lost(dv, dv.metadata.name or "")
    try:
        read_knobs(dv.metadata.annotations)
    except InvalidManifest as error:
        return _failed(None, as_failure(error))
    origin = find_origin(world)
    if isinstance(origin, Refuse):
        return _failed(None, origin.failure)
    source: Claim | None = None
    if isinstance(origin, Clone):
        found = examine_clone(world, origin)
        if isinstance(found, Refuse):
            return _failed(None, found.failure)
        if isinstance(found, Wait):
            return _pending(None, found)
        source = found
    if isinstance(origin, Wait):
        return _pending(None, origin)
    state = State(
        phase=Phase.PENDING,
        bound=no(Reason.PENDING, f"PVC {dv.metadata.name} Pending"),
        running=no(),
        ready=no(),
        claim_name=dv.metadata.name,
    )
    return _Decision(state=state, actions=(CreateClaim(body=build_claim(world, origin, source)),))


def _foreign_claim(world: World, claim: Claim) -> _Decision:
    dv = world.datavolume
    annotations = dv.metadata.annotations or {}
    meant = (
        annotations.get(ANN_ALLOW_CLAIM_ADOPTION) == "true"
        or annotations.get(ANN_PRE_POPULATED) == claim.name
        or populated_for(claim, dv)
    )
    if meant and not claim.controller_uid and not claim.deleting:
        adopt = PatchObject(
            plural="persistentvolumeclaims",
            namespace=claim.namespace,
            name=claim.name,
            uid=claim.uid,
            annotations={ANN_POPULATED_FOR: dv.metadata.name},
            owner=owner_reference(dv),
        )
        decision = _succeeded(claim, Ledger(), "the volume was there already")
        return replace(decision, actions=(adopt,), pod=None, ledger=None)
    predecessor = claim.controller_kind == dv.kind_name() and claim.controller_name == dv.metadata.name
    if claim.deleting or predecessor:
        return _pending(None, Wait(reason=Reason.PENDING, message=f"an earlier PVC {claim.name} is being removed"))
    owner = f", controlled by {claim.controller_kind} {claim.controller_name}" if claim.controller_uid else ""
    error = AlreadyExists(
        f"Destination PVC {claim.namespace}/{claim.name} already exists{owner}",
        remedy="delete it, choose another name"
        + ("" if owner else f', or adopt it with the annotation {ANN_ALLOW_CLAIM_ADOPTION}: "true"'),
    )
    decision = _failed(None, as_failure(error))
    return replace(decision, state=replace(decision.state, bound=no(error.code, error.message)))


# --- with a claim of its own ------------------------------------------------------------------------------------


def _with_claim(world: World, claim: Claim) -> _Decision:
    worker = world.worker
    recorded = Ledger.read(claim.annotations.get(ANNOTATION))
    ledger = recorded.after(worker)
    request = UploadRequest.read(claim.annotations.get(uploads.ANNOTATION))
    if request is not None and not ledger.done and request.id != ledger.upload and not (worker and worker.running):
        ledger = ledger.for_upload(request.id)
    decision = _follow(world, claim, ledger, request)
    if ledger != recorded:
        # Written down by the first of the actions: none of those that follow from it is carried out without it.
        decision = replace(decision, ledger=ledger)
    restarts = max(0, max(ledger.attempt, worker.attempt if worker else 0) - 1)
    return replace(decision, state=replace(decision.state, restarts=restarts))


def _follow(world: World, claim: Claim, ledger: Ledger, request: UploadRequest | None) -> _Decision:
    worker = world.worker
    if ledger.done:
        news = worker is not None and worker.outcome is not None and worker.attempt == ledger.attempt
        return _succeeded(claim, ledger, "", worker.outcome if worker is not None and news else None)
    if worker is not None and worker.running and worker.attempt > ledger.attempt:
        return _running(world, claim, worker)
    if ledger.failure is not None:
        decision = _after_failure(world, claim, ledger, ledger.failure)
        if decision is not None:
            return decision
    if claim.phase != "Bound":
        return _pending(claim, Wait(reason=Reason.PENDING, message=claim.why_pending))
    return _next_attempt(world, claim, ledger, request)


def _after_failure(world: World, claim: Claim, ledger: Ledger, failure: Failure) -> _Decision | None:
    """None where it is time for another attempt."""
    dv, retries = world.datavolume, world.retries
    spent = ledger.spent(retries) if failure.retry is Retry.BACKOFF else None
    if failure.retry is Retry.NEVER or spent is not None:
        return _failed(claim, spent or failure)
    if operation_of(dv) == "Upload":
        request = UploadRequest.read(claim.annotations.get(uploads.ANNOTATION))
        if request is None or request.path is None:
            return _upload_ready(claim, failure)
    if failure.retry is Retry.BACKOFF:
        due = ledger.ended + ledger.pause(claim.uid, retries)
    else:
        due = ledger.ended + retries.patience
        prepared = _prepared(world, claim)
        if isinstance(prepared, Prepared) and prepared.fingerprint != ledger.fingerprint:
            return None
    left = due - world.now
    if left <= 0:
        return None
    state = State(
        phase=_phase(dv, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY),
        bound=_bound(claim),
        running=no(Reason.ERROR, failure.message),
        ready=no(failure.code, failure.message),
        claim_name=claim.name,
        progress=_progress(world.worker),
    )
    # A clock that was set back must not make a pause longer than the longest.
    longest = max(retries.longest * 1.25, retries.patience)
    return _Decision(state=state, requeue_after=min(left, longest), pod="Running")


def _prepared(world: World, claim: Claim) -> Prepared | Wait | Refuse | None:
    """The next attempt's work; None where a client must bring it first."""
    origin = find_origin(world)
    if isinstance(origin, Wait | Refuse):
        return origin
    source: Claim | None = None
    if isinstance(origin, Clone):
        found = examine_clone(world, origin)
        if isinstance(found, Wait | Refuse):
            return found
        source = found
    request = UploadRequest.read(claim.annotations.get(uploads.ANNOTATION))
    if isinstance(origin, Upload) and request is None:
        return None
    try:
        return prepare(world, claim, origin, source=source, upload=request)
    except CdiError as error:
        return Refuse.because(error)


def _next_attempt(world: World, claim: Claim, ledger: Ledger, request: UploadRequest | None) -> _Decision:
    dv = world.datavolume
    prepared = _prepared(world, claim)
    if prepared is None:
        return _upload_ready(claim, None)
    if isinstance(prepared, Refuse):
        return _failed(claim, prepared.failure)
    if isinstance(prepared, Wait):
        return _held_up(claim, prepared)
    upload = request.id if request is not None and operation_of(dv) == "Upload" else ""
    start = StartWorker(
        claim=claim.uid,
        attempt=max(ledger.attempt, world.worker.attempt if world.worker else 0) + 1,
        work=prepared.work,
        mounts=prepared.mounts,
        fingerprint=prepared.fingerprint,
        upload=upload,
    )
    reason, message = ("", "") if world.admitted else (Reason.PENDING, world.turn)
    state = State(
        phase=_phase(dv, Phase.IMPORT_SCHEDULED, Phase.CLONE_SCHEDULED, Phase.UPLOAD_SCHEDULED),
        bound=_bound(claim),
        running=no(reason, message),
        ready=no(reason, message),
        claim_name=claim.name,
        progress=_progress(world.worker),
    )
    return _Decision(
        state=state, actions=(start,) if world.admitted else (), wants_worker=not world.admitted, pod="Pending"
    )


# --- the states -------------------------------------------------------------------------------------------------


def _running(world: World, claim: Claim, worker: Worker) -> _Decision:
    note = worker.progress.note if worker.progress is not None else ""
    state = State(
        phase=_phase(world.datavolume, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY),
        bound=_bound(claim),
        running=yes("Pod is running", note[:_MESSAGE]),
        ready=no(Reason.TRANSFER_RUNNING, note[:_MESSAGE]),
        claim_name=claim.name,
        progress=_progress(worker),
    )
    return _Decision(state=state, pod="Running")


def _succeeded(claim: Claim, ledger: Ledger, message: str, outcome: Outcome | None = None) -> _Decision:
    verified = verified_by(claim, outcome)
    text = message or (f"verified by {verified}" if verified else "")
    state = State(
        phase=Phase.SUCCEEDED,
        bound=_bound(claim),
        running=no(Reason.COMPLETED, "Import Complete"),
        ready=yes(Reason.READY, text),
        claim_name=claim.name,
        progress=PROGRESS_DONE,
    )
    return _Decision(state=state, pod="Succeeded" if ledger.done else None, outcome=outcome)


def _failed(claim: Claim | None, failure: Failure) -> _Decision:
    reason = Reason.CHECKSUM_ERROR if failure.code == "ChecksumMismatch" else Reason.ERROR
    state = State(
        phase=Phase.FAILED,
        bound=_bound(claim) if claim is not None else no(Reason.NOT_FOUND, "No PVC found"),
        running=no(reason, failure.message),
        ready=no(failure.code, failure.message),
        claim_name=claim.name if claim is not None else None,
    )
    return _Decision(state=state, pod="Failed")


def _claim_lost(dv: DataVolume, name: str) -> _Decision:
    error = ClaimLost(f"the volume of PVC {dv.metadata.namespace}/{name} is lost")
    state = State(
        phase=Phase.FAILED,
        bound=no(Reason.CLAIM_LOST, error.message),
        running=no(Reason.ERROR, error.message),
        ready=no(Reason.CLAIM_LOST, error.message),
        claim_name=name,
    )
    return _Decision(state=state)


def _is_settled(dv: DataVolume) -> bool:
    """It had its volume; without it, it is not imported again behind its users' backs."""
    phase = dv.status.phase if dv.status is not None else None
    bound = find_condition(dv.status.conditions if dv.status else None, ConditionType.BOUND)
    return phase == Phase.SUCCEEDED or (
        phase == Phase.FAILED and bound is not None and bound.reason == Reason.CLAIM_LOST
    )


def _pending(claim: Claim | None, wait: Wait) -> _Decision:
    """Not bound, for one reason."""
    if claim is None:
        bound = no(Reason.NOT_FOUND, f"No PVC found: {wait.message}")
    else:
        bound = no(wait.reason, f"PVC {claim.name} Pending{': ' if wait.message else ''}{wait.message}")
    state = State(
        phase=Phase.PENDING,
        bound=bound,
        running=no("" if claim else wait.reason, "" if claim else wait.message),
        ready=no(wait.reason, wait.message),
        claim_name=claim.name if claim is not None else None,
    )
    return _Decision(state=state, events=_wait_event(wait), pod="Pending" if claim else None)


def _held_up(claim: Claim, wait: Wait) -> _Decision:
    """Bound, and something else is missing."""
    state = State(
        phase=Phase.PVC_BOUND,
        bound=_bound(claim),
        running=no(wait.reason, wait.message),
        ready=no(wait.reason, wait.message),
        claim_name=claim.name,
    )
    return _Decision(state=state, events=_wait_event(wait), pod="Pending")


def _upload_ready(claim: Claim, failure: Failure | None) -> _Decision:
    message = f"waits for: cdi upload -n {claim.namespace} {claim.name} FILE"
    state = State(
        phase=Phase.UPLOAD_READY,
        bound=_bound(claim),
        running=no(Reason.ERROR, f"{failure.message} Upload it again") if failure else no(Reason.PENDING, message),
        ready=no(failure.code, failure.message) if failure else no(Reason.PENDING, message),
        claim_name=claim.name,
    )
    return _Decision(state=state, pod="Running")


def _wait_event(wait: Wait) -> tuple[EventFact, ...]:
    return (EventFact(type="Warning", reason=wait.event, message=wait.message),) if wait.event else ()


def _bound(claim: Claim) -> Aspect:
    if claim.phase == "Bound":
        return yes(Reason.BOUND, f"PVC {claim.name} Bound")
    return no(Reason.PENDING, f"PVC {claim.name} Pending")


def _phase(dv: DataVolume, imports: Phase, clones: Phase, uploaded: Phase) -> Phase:
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


def _progress(worker: Worker | None) -> str:
    fraction = worker.progress.fraction if worker is not None and worker.progress is not None else None
    if fraction is None:
        return PROGRESS_UNKNOWN
    # 100.0% is said of a volume that is verified, not of one whose last byte came.
    return progress(min(fraction, 0.9999))
