"""Retry or final failure after a failed attempt, and the state shown in between."""

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
"""The code of a failure after which the next attempt gets scratch space."""


def ended(world: World, claim: Claim, ledger: Ledger, failure: Failure) -> Decision | None:
    """Return the final failed state; None if another attempt follows."""
    end = failure if failure.retry is Retry.NEVER else None
    if failure.retry is Retry.BACKOFF:
        end = ledger.spent(world.retries)
    return None if end is None else failed(claim, end, not_running(world, end))


def paused(world: World, claim: Claim, ledger: Ledger, failure: Failure) -> Decision:
    """Return the state until the next attempt is due, with the remaining seconds in `requeue_after`."""
    retries = world.retries
    left = max(0.0, ledger.ended + ledger.pause(claim.uid, retries) - world.now)
    # The limit also holds if the clock was set back.
    longest = 1.25 * (retries.longest if failure.retry is Retry.BACKOFF else retries.longest_on_change)
    decision = failing(world, claim, failure, world.worker)
    if operation_of(world.datavolume) == "Upload":
        # No upload is accepted until the next pod exists.
        decision = replace(decision, state=replace(decision.state, phase=Phase.UPLOAD_SCHEDULED))
    return replace(decision, requeue_after=min(left, longest))


def shown_failure(world: World, ledger: Ledger) -> Failure | None:
    """Return the failure of the last attempt, if it is shown until the next one gets further.

    It is not shown for uploads, since a pod that waits for one fetches nothing, nor if the next attempt gets scratch
    space, since that is a regular step.
    """
    failure = ledger.failure
    if failure is None or failure.code == SCRATCH_NEEDED or operation_of(world.datavolume) == "Upload":
        return None
    return failure
