"""Status of a clone: annotations of its target PVC, states of its DataVolume, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from cdi.api.datavolume import DataVolume
from cdi.api.names import (
    ANN_CLONE_ERROR,
    ANN_CLONE_FALLBACK_REASON,
    ANN_CLONE_OF,
    ANN_CLONE_PHASE,
    ANN_CLONE_TYPE,
    ANN_EXTENDED_CLONE_TOKEN,
)
from cdi.api.phases import ClonePhase, Phase, Reason
from cdi.api.quantity import human
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, Event, PatchObject
from cdi.reconcile.clone.plan_annotation import ClonePlanRecord, store_plan
from cdi.reconcile.datavolume.result import Result, bound_condition
from cdi.reconcile.datavolume.status import DataVolumeState, false
from cdi.reconcile.types import PVC, Pending

_PHASES = {
    Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS: ClonePhase.SNAPSHOT,
    Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS: ClonePhase.SNAPSHOT_CLONE,
    Phase.SMART_CLONE_PVC_IN_PROGRESS: ClonePhase.SNAPSHOT_CLONE,
    Phase.CSI_CLONE_IN_PROGRESS: ClonePhase.CSI_CLONE,
    Phase.CLONE_IN_PROGRESS: ClonePhase.HOST_CLONE,
    Phase.EXPANSION_IN_PROGRESS: ClonePhase.PREP_CLAIM,
    Phase.PREP_CLAIM_IN_PROGRESS: ClonePhase.PREP_CLAIM,
    Phase.REBIND_IN_PROGRESS: ClonePhase.REBIND,
    Phase.NAMESPACE_TRANSFER_IN_PROGRESS: ClonePhase.REBIND,
    Phase.SUCCEEDED: ClonePhase.SUCCEEDED,
    Phase.FAILED: ClonePhase.ERROR,
}


def clone_phase(phase: Phase) -> ClonePhase:
    """Return the value of the annotation ``clonePhase``."""
    return _PHASES.get(phase, ClonePhase.PENDING)


def clone_marks(claim: PVC, state: DataVolumeState) -> dict[str, str | None]:
    """Return the target's annotations about the clone."""
    phase = state.phase
    wrong = phase is Phase.FAILED or state.running.reason == Reason.ERROR
    shown = ClonePhase.ERROR if wrong and phase is Phase.CLONE_SCHEDULED else clone_phase(phase)
    marks: dict[str, str | None] = {ANN_CLONE_PHASE: shown.value}
    marks[ANN_CLONE_ERROR] = state.ready.message if wrong else None
    record = ClonePlanRecord.read(claim)
    if record is not None:
        marks[ANN_CLONE_TYPE] = record.strategy.value
        if record.reason:
            marks[ANN_CLONE_FALLBACK_REASON] = record.fallback_sentence
    if phase is Phase.SUCCEEDED:
        marks[ANN_CLONE_OF] = "true"
    return marks


def data_volume_marks(dv: DataVolume, claim: PVC, told: Mapping[str, str | None]) -> PatchObject | None:
    """Return the patch with the target's annotations that other programs read on its DataVolume.

    Args:
        dv: The DataVolume.
        claim: Its target PVC.
        told: Annotations that the PVC is about to get.

    """
    own = dv.metadata.annotations or {}
    wanted = {
        name: told.get(name) or claim.annotations.get(name) for name in (ANN_CLONE_TYPE, ANN_EXTENDED_CLONE_TOKEN)
    }
    changed = {name: text for name, text in wanted.items() if text and own.get(name) != text}
    if not changed:
        return None
    return PatchObject.of_data_volume(dv, annotations=changed)


def clone_in_progress(claim: PVC, phase: Phase, message: str, actions: tuple[Action, ...] = ()) -> Result:
    """Return the state while an object is being created; its change triggers the next reconcile."""
    state = DataVolumeState(
        phase=phase,
        bound=bound_condition(claim),
        running=false(Reason.PENDING, message),
        ready=false(Reason.PENDING, message),
        claim_name=claim.name,
    )
    return Result(state=state, actions=actions)


def clone_pending(claim: PVC, wait: Pending) -> Result:
    """Return the state before anything is created."""
    state = DataVolumeState(
        phase=Phase.CLONE_SCHEDULED,
        bound=bound_condition(claim),
        running=false(wait.reason, wait.message),
        ready=false(wait.reason, wait.message),
        claim_name=claim.name,
    )
    events = (Event(type="Warning", reason=wait.event, message=wait.message),) if wait.event else ()
    return Result(state=state, events=events)


def clone_waiting(claim: PVC, message: str, *actions: Action) -> Result:
    """Return the state before anything is created, with a message about what the clone waits for."""
    return replace(clone_pending(claim, Pending(reason=Reason.PENDING, message=message)), actions=actions)


def discard_plan(result: Result, claim: PVC) -> Result:
    """Return the result with the action that discards the plan, so that another one is made."""
    return replace(result, actions=(store_plan(claim, None),))


def source_replaced(claim: PVC, place: str) -> Result:
    """Return the state of a clone whose plan was made for another source of this namespace and name."""
    return discard_plan(clone_waiting(claim, f"the source {place} was replaced by another object of that name"), claim)


def costs(record: ClonePlanRecord, asked: int | None) -> tuple[str, ...]:
    """Return the costs of a clone to a target of `asked` bytes."""
    return tuple(_costs(record, asked))


def _costs(record: ClonePlanRecord, asked: int | None) -> Iterator[str]:
    if record.strategy is CloneStrategy.COPY:
        if record.restored:
            yield (
                f"a temporary volume restored from the snapshot, PVC {record.namespace}/{record.restored}, "
                "until it has been read"
            )
        most = "" if record.size is None else f", at most {human(record.size)} ({record.size} bytes)"
        yield (
            "two pods: one reads the source for all clones of it that run now and sends its data"
            f"{most}, the other one writes the target"
        )
        return
    if record.snapshot:
        yield (
            f"VolumeSnapshot {record.namespace}/{record.snapshot}, shared by all clones that are requested "
            "while it exists"
        )
    made = "cloned by the storage" if record.strategy is CloneStrategy.CSI_CLONE else "restored from it by the storage"
    if record.strategy is CloneStrategy.SNAPSHOT and not record.snapshot:
        made = "restored from the snapshot by the storage"
    yield f"a volume {made}; no pod reads or writes its content"
    if record.size is not None and asked is not None and asked > record.size:
        yield (
            f"the volume is expanded from {human(record.size)} to {human(asked)}; a pod mounts it once to "
            "expand a filesystem"
        )
