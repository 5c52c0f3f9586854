"""States of a DataVolume whose clone is in progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdi.api.phases import Phase, Reason
from cdi.reconcile.actions import Action, EventFact
from cdi.reconcile.decision import Decision, bound_aspect
from cdi.reconcile.status import State, no

if TYPE_CHECKING:
    from cdi.reconcile.origin import Wait
    from cdi.reconcile.world import Claim


def underway(claim: Claim, phase: Phase, message: str, actions: tuple[Action, ...] = ()) -> Decision:
    """Return the state while an object is being created; its change triggers the next reconcile."""
    state = State(
        phase=phase,
        bound=bound_aspect(claim),
        running=no(Reason.PENDING, message),
        ready=no(Reason.PENDING, message),
        claim_name=claim.name,
    )
    return Decision(state=state, actions=actions)


def waiting(claim: Claim, wait: Wait) -> Decision:
    """Return the state before anything is created."""
    state = State(
        phase=Phase.CLONE_SCHEDULED,
        bound=bound_aspect(claim),
        running=no(wait.reason, wait.message),
        ready=no(wait.reason, wait.message),
        claim_name=claim.name,
    )
    events = (EventFact(type="Warning", reason=wait.event, message=wait.message),) if wait.event else ()
    return Decision(state=state, events=events)
