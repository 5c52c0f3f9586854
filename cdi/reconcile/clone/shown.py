"""Annotations of a clone's target PVC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdi.api.names import (
    ANN_CLONE_ERROR,
    ANN_CLONE_FALLBACK_REASON,
    ANN_CLONE_OF,
    ANN_CLONE_PHASE,
    ANN_CLONE_TYPE,
)
from cdi.api.phases import ClonePhase, Phase, Reason
from cdi.reconcile.clone.record import CloneRecord

if TYPE_CHECKING:
    from cdi.reconcile.status import State
    from cdi.reconcile.world import Claim

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


def clone_marks(claim: Claim, state: State) -> dict[str, str | None]:
    """Return the target's annotations about the clone."""
    phase = state.phase
    marks: dict[str, str | None] = {ANN_CLONE_PHASE: clone_phase(phase).value}
    wrong = phase is Phase.FAILED or state.running.reason == Reason.ERROR
    marks[ANN_CLONE_ERROR] = state.ready.message if wrong else None
    record = CloneRecord.read(claim)
    if record is not None:
        marks[ANN_CLONE_TYPE] = record.strategy.value
        if record.reason:
            marks[ANN_CLONE_FALLBACK_REASON] = record.reason
    if phase is Phase.SUCCEEDED:
        marks[ANN_CLONE_OF] = "true"
    return marks
