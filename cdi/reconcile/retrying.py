"""What follows a failed attempt: the end, or a pause and the next attempt, and what is shown meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cdi.api.errors import Retry
from cdi.api.job import Failure
from cdi.api.phases import Phase
from cdi.reconcile.decision import Decision, failed, failing, operation_of
from cdi.reconcile.importer_errors import not_running
from cdi.reconcile.ledger import Ledger
from cdi.reconcile.world import Claim, World

SCRATCH_NEEDED: Final = "ScratchNeeded"
"""The code of an attempt that is followed by one with scratch space."""


def ended(world: World, claim: Claim, ledger: Ledger, failure: Failure) -> Decision | None:
    """Return the end of a volume that no further attempt can fill; None where another one follows."""
    end = failure if failure.retry is Retry.NEVER else None
    if failure.retry is Retry.BACKOFF:
        end = ledger.spent(world.retries)
    return None if end is None else failed(claim, end, not_running(world, end))


def paused(world: World, claim: Claim, ledger: Ledger, failure: Failure) -> Decision:
    """Return what is shown until the next attempt is due, with the seconds until then in `requeue_after`."""
    retries = world.retries
    left = max(0.0, ledger.ended + ledger.pause(claim.uid, retries) - world.now)
    # A clock that was set back must not make a pause longer than the longest.
    longest = 1.25 * (retries.longest if failure.retry is Retry.BACKOFF else retries.longest_on_change)
    decision = failing(world, claim, failure, world.worker)
    if operation_of(world.datavolume) == "Upload":
        # Nobody takes an upload until the next pod is there.
        decision = replace(decision, state=replace(decision.state, phase=Phase.UPLOAD_SCHEDULED))
    return replace(decision, requeue_after=min(left, longest))


def shown_failure(world: World, ledger: Ledger) -> Failure | None:
    """Return how the last attempt failed, if that is shown until the next one gets further.

    A pod that waits for an upload has nothing to fetch, and what scratch space cures is a step on the way.
    """
    failure = ledger.failure
    if failure is None or failure.code == SCRATCH_NEEDED or operation_of(world.datavolume) == "Upload":
        return None
    return failure
