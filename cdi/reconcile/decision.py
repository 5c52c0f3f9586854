"""Constructors for the possible states of a DataVolume, one function for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from cdi.api.conditions import find_condition
from cdi.api.datavolume import DataVolume
from cdi.api.errors import ClaimLost
from cdi.api.job import Failure, Outcome, Progress
from cdi.api.names import GROUP
from cdi.api.phases import PROGRESS_DONE, PROGRESS_UNKNOWN, ConditionType, Phase, Reason, progress
from cdi.reconcile.actions import Action, EventFact
from cdi.reconcile.importer_errors import not_running
from cdi.reconcile.ledger import Ledger
from cdi.reconcile.origin import Wait
from cdi.reconcile.status import Aspect, State, no, yes
from cdi.reconcile.upload_target import UPLOAD_SOURCE
from cdi.reconcile.world import Claim, Hold, Operation, Pod, Worker, World

_MESSAGE = 1024
RUNS = "Pod is running"
"""The reason of the Running condition, letter for letter that of KubeVirt's CDI."""
ON_THE_WAY = (Reason.PENDING, Reason.CONTAINER_CREATING)
"""Reasons of `cdi.reconcile.world.Hold` that every pod passes through before it runs."""
IMAGE = f"{GROUP}/image."
"""Prefix of the PVC annotations that describe a finished import: ``image.digest`` and so on."""
VERIFIED_BY = f"{IMAGE}verifiedBy"
DISK_SIZE = f"{IMAGE}diskSize"
"""Annotation with the disk's size in bytes at the time when the volume was filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A state and the actions that it requires."""

    state: State
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    wants_worker: bool = False
    events: tuple[EventFact, ...] = ()
    pod: str | None = None
    """Value of the PVC's ``storage.pod.phase``; None leaves it unchanged."""
    ledger: Ledger | None = None
    outcome: Outcome | None = None
    """The outcome of an import that has just succeeded."""
    prime_pod: str | None = None
    """Value of ``storage.pod.phase`` for the prime PVC, if it differs from `pod`."""
    marks: Mapping[str, str | None] = field(default_factory=dict)
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


def running(world: World, claim: Claim, worker: Worker, last: Failure | None) -> Decision:
    """Return the state for a worker that has not ended; `last` is the failure of the attempt before it."""
    pod = worker.pod
    if pod is not None and (not pod.started or pod.hold is not None):
        usual = pod.hold is None or pod.hold.reason in ON_THE_WAY
        return failing(world, claim, last, worker) if last is not None and usual else _held(world, claim, worker, pod)
    progress = worker.progress
    failure = progress.failure if progress is not None else None
    if failure is None and not _has_moved(progress):
        failure = last
    if failure is not None:
        return failing(world, claim, failure, worker)
    note = progress.note if progress is not None else ""
    state = State(
        phase=phase_of(world.datavolume, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY),
        bound=bound_aspect(claim),
        running=yes(RUNS, note[:_MESSAGE]),
        ready=no(Reason.TRANSFER_RUNNING, note[:_MESSAGE]),
        claim_name=claim.name,
        progress=progress_of(worker),
    )
    return Decision(state=state, pod="Running")


def _has_moved(progress: Progress | None) -> bool:
    """Return whether an attempt has got past requesting its source."""
    if progress is None:
        return False
    return progress.fetched > 0 or progress.written > 0 or progress.phase not in ("preparing", "transferring")


def failing(world: World, claim: Claim, failure: Failure, worker: Worker | None) -> Decision:
    """Return the state from a failed try until data flows again, whether `worker` is backing off or has yet to start.

    KubeVirt's CDI shows the same while its importer container waits to be restarted.
    """
    state = State(
        phase=phase_of(world.datavolume, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY),
        bound=bound_aspect(claim),
        running=not_running(world, failure),
        ready=no(failure.code, failure.message),
        claim_name=claim.name,
        progress=progress_of(worker),
    )
    return Decision(state=state, pod="Running")


def _held(world: World, claim: Claim, worker: Worker, pod: Pod) -> Decision:
    """Return the state for a pod that does not run, or is about to stop."""
    hold = pod.hold or Hold(reason=Reason.PENDING, message=f"Pod {pod.name} has not started")
    dv = world.datavolume
    state = State(
        phase=phase_of(dv, Phase.IMPORT_IN_PROGRESS, Phase.CLONE_IN_PROGRESS, Phase.UPLOAD_READY)
        if pod.started
        else phase_of(dv, Phase.IMPORT_SCHEDULED, Phase.CLONE_SCHEDULED, Phase.UPLOAD_SCHEDULED),
        bound=bound_aspect(claim),
        running=no(hold.reason, hold.message),
        ready=no(hold.reason, hold.message),
        claim_name=claim.name,
        progress=progress_of(worker),
    )
    return Decision(state=state, pod="Running" if pod.started else "Pending")


def succeeded(claim: Claim, ledger: Ledger, message: str, outcome: Outcome | None = None) -> Decision:
    """Return the state of a complete volume, with `message` or what it was verified by."""
    verified = ", ".join(outcome.verified_by) if outcome is not None else claim.annotations.get(VERIFIED_BY, "")
    text = message or (f"verified by {verified}" if verified else "")
    state = State(
        phase=Phase.SUCCEEDED,
        bound=bound_aspect(claim),
        running=no(Reason.COMPLETED, "Import Complete"),
        ready=yes(Reason.READY, text),
        claim_name=claim.name,
        progress=PROGRESS_DONE,
    )
    return Decision(state=state, pod="Succeeded" if ledger.done else None, outcome=outcome)


def failed(claim: Claim | None, failure: Failure, running: Aspect | None = None) -> Decision:
    """Return the final failed state.

    Args:
        claim: The DataVolume's own PVC; None if there is none.
        failure: The cause.
        running: The Running condition, if it differs from the failure's message.

    """
    state = State(
        phase=Phase.FAILED,
        bound=bound_aspect(claim) if claim is not None else no(Reason.NOT_FOUND, "No PVC found"),
        running=running or no(Reason.ERROR, failure.message),
        ready=no(failure.code, failure.message),
        claim_name=claim.name if claim is not None else None,
    )
    return Decision(state=state, pod="Failed")


def claim_lost(dv: DataVolume, name: str) -> Decision:
    """Return the failed state of a DataVolume whose volume was lost."""
    error = ClaimLost(f"the volume of PVC {dv.metadata.namespace}/{name} is lost")
    state = State(
        phase=Phase.FAILED,
        bound=no(Reason.CLAIM_LOST, error.message),
        running=no(Reason.ERROR, error.message),
        ready=no(Reason.CLAIM_LOST, error.message),
        claim_name=name,
    )
    return Decision(state=state)


def pending(claim: Claim | None, wait: Wait, phase: Phase = Phase.PENDING) -> Decision:
    """Return the state of a DataVolume whose PVC is not bound."""
    if wait.reason in (Reason.ERR_CLAIM_NOT_VALID, Reason.ERR_EXCEEDED_QUOTA):
        bound = no(wait.reason, wait.message)
    elif claim is None:
        bound = no(Reason.NOT_FOUND, f"No PVC found: {wait.message}")
    else:
        bound = no(wait.reason, f"PVC {claim.name} Pending{': ' if wait.message else ''}{wait.message}")
    state = State(
        phase=phase,
        bound=bound,
        running=no("" if claim else wait.reason, "" if claim else wait.message),
        ready=no(wait.reason, wait.message),
        claim_name=claim.name if claim is not None else None,
    )
    return Decision(state=state, events=_wait_event(wait), pod="Pending" if claim else None)


def held_up(claim: Claim, wait: Wait) -> Decision:
    """Return the state of a DataVolume whose PVC is bound but that waits for something else."""
    state = State(
        phase=Phase.PVC_BOUND,
        bound=bound_aspect(claim),
        running=no(wait.reason, wait.message),
        ready=no(wait.reason, wait.message),
        claim_name=claim.name,
    )
    return Decision(state=state, events=_wait_event(wait), pod="Pending")


def upload_ready(claim: Claim, failure: Failure | None) -> Decision:
    """Return the state of waiting for an upload, again after a failed one."""
    message = f"waiting for: cdi upload -n {claim.namespace} {claim.name} FILE"
    state = State(
        phase=Phase.UPLOAD_READY,
        bound=bound_aspect(claim),
        running=no(Reason.ERROR, f"{failure.message} Upload it again") if failure else no(Reason.PENDING, message),
        ready=no(failure.code, failure.message) if failure else no(Reason.PENDING, message),
        claim_name=claim.name,
    )
    return Decision(state=state, pod="Running")


def _wait_event(wait: Wait) -> tuple[EventFact, ...]:
    return (EventFact(type="Warning", reason=wait.event, message=wait.message),) if wait.event else ()


def bound_aspect(claim: Claim) -> Aspect:
    """Return the Bound condition of a PVC."""
    if claim.phase == "Bound":
        return yes(Reason.BOUND, f"PVC {claim.name} Bound")
    return no(Reason.PENDING, f"PVC {claim.name} Pending")


def is_settled(dv: DataVolume) -> bool:
    """Return whether the DataVolume had its volume.

    If the volume is lost afterwards, it is not silently imported again.
    """
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
