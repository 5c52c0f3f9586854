"""Entry point of a transfer, from a `Job` to its `Outcome`.

    probe ─► expectations ─► peel ─► plan ─► fetch, decode, write ─► verify ─► flush ─► name it

If the source breaks or changes during the transfer, the transfer is restarted here. A failure that can be resumed later
leaves a journal; after any other the target is wiped.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cdi.api.errors import CdiError, InternalError, Retry
from cdi.api.job import BlankSourceSpec, Failure, Job, Outcome, RegistrySourceSpec
from cdi.source.base import Source
from cdi.transfer.blank import make_blank
from cdi.transfer.cleanup import discard_unfinished
from cdi.transfer.control import TransferControl
from cdi.transfer.result import OutcomeBuilder

if TYPE_CHECKING:
    from cdi.transfer.restarts import ProbedSource


def transfer(job: Job, control: TransferControl, opened: Callable[[], Source] | None = None) -> Outcome:
    """Run `job` and return its outcome, which includes any failure; this function does not raise.

    `opened` returns the source for each attempt, if it cannot be opened from the job alone.
    """
    began = time.monotonic()
    result = OutcomeBuilder(job.id)
    try:
        _dispatch(job, control, result, opened)
    except CdiError as error:
        result.failure = failure_of(_abandoned(job, error, result))
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect is reported, not lost
        traceback.print_exc()
        result.failure = failure_of(InternalError(f"{type(error).__name__}: {error}"))
    control.meter.phase = "done"
    result.fetched = control.meter.fetched
    result.seconds = round(time.monotonic() - began, 3)
    return result.outcome()


def _abandoned(job: Job, error: CdiError, result: OutcomeBuilder) -> CdiError:
    """Clean up after `error` and return it; record a failed cleanup as a warning."""
    # The unfinished disk of an earlier attempt is useful only if there is another attempt.
    left = job.continued and not result.wiped and error.retry is Retry.NEVER
    try:
        discard_unfinished(job, error, begun=result.target_modified or left)
    except CdiError as another:
        result.warn(f"cannot wipe the unfinished disk: {another.what}")
    return error


def failure_of(error: CdiError) -> Failure:
    return Failure.from_error(error)


def _dispatch(job: Job, control: TransferControl, result: OutcomeBuilder, opened: Callable[[], Source] | None) -> None:
    source = job.source
    if isinstance(source, BlankSourceSpec):
        make_blank(job, control, result)
    elif isinstance(source, RegistrySourceSpec):
        from cdi.transfer.container_disk import import_container_disk

        import_container_disk(job, source, control, result)
    else:
        # Import them here: loading them takes longer than making a blank disk.
        from cdi.source.open import open_source
        from cdi.transfer.restarts import run_with_restarts

        carry = _import_archive if job.content_type == "archive" else _import_disk
        reopen = opened or partial(open_source, source, job.policy)
        run_with_restarts(job, control, result, reopen, partial(carry, job, control, result))


def _import_disk(job: Job, control: TransferControl, result: OutcomeBuilder, probed: ProbedSource) -> None:
    from cdi.transfer.disk import DiskTransfer

    DiskTransfer(job, probed, control, result).run()


def _import_archive(job: Job, control: TransferControl, result: OutcomeBuilder, probed: ProbedSource) -> None:
    from cdi.transfer.archive import unpack_archive

    unpack_archive(job, probed, control, result)
