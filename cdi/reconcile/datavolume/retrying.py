"""Retry or final failure after a failed attempt, and the state shown in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.errors import Retry
from cdi.api.job import Failure
from cdi.api.phases import Phase
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.result import Result, failed, failing, not_running, operation_of
from cdi.reconcile.settings import Retries
from cdi.reconcile.types import PVC, ResolvedSource

SCRATCH_NEEDED: Final = "ScratchNeeded"
"""The code of a failure after which the next attempt gets scratch space."""


def ended(
    claim: PVC, source: ResolvedSource, attempts: AttemptHistory, failure: Failure, retries: Retries
) -> Result | None:
    """Return the final failed state; None if another attempt follows."""
    end = failure if failure.retry is Retry.NEVER else None
    if failure.retry is Retry.BACKOFF:
        end = attempts.exhausted(retries)
    return None if end is None else failed(claim, end, not_running(source, end))


def paused(
    context: ReconcileContext, claim: PVC, source: ResolvedSource, attempts: AttemptHistory, failure: Failure
) -> Result:
    """Return the state until the next attempt is due, with the remaining seconds in `requeue_after`."""
    retries = context.retries
    left = max(0.0, attempts.ended + attempts.backoff(claim.uid, retries) - context.now)
    # The limit also holds if the clock was set back.
    longest = 1.25 * (retries.longest if failure.retry is Retry.BACKOFF else retries.longest_on_change)
    result = failing(context.datavolume, claim, source, failure, context.worker)
    if operation_of(context.datavolume) == "Upload":
        # No upload is accepted until the next pod exists.
        result = replace(result, state=replace(result.state, phase=Phase.UPLOAD_SCHEDULED))
    return replace(result, requeue_after=min(left, longest))


def shown_failure(dv: DataVolume, attempts: AttemptHistory) -> Failure | None:
    """Return the failure of the last attempt, if it is shown until the next one gets further.

    It is not shown for uploads, since a pod that waits for one fetches nothing, nor if the next attempt gets scratch
    space, since that is a regular step.
    """
    failure = attempts.failure
    if failure is None or failure.code == SCRATCH_NEEDED or operation_of(dv) == "Upload":
        return None
    return failure
