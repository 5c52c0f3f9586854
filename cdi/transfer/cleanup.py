"""Cleanup after a failed transfer: keep what a later run can resume from, wipe everything else."""

from __future__ import annotations

from cdi.api.errors import CdiError, Retry, TargetBusy, TargetError
from cdi.api.job import DirectoryTargetSpec, FileTargetSpec, Job
from cdi.target.open import open_target
from cdi.transfer.journal import Journal, is_dirty, remove


def discard_unfinished(job: Job, error: CdiError, *, begun: bool) -> None:
    """Wipe the unfinished disk, unless `error` is retryable and the journal holds a position to resume from.

    An unfinished disk file is removed even if nothing was written to it. A device is left unchanged unless this run
    wrote to it, or the journal shows that an earlier one did.

    Args:
        job: The failed job.
        error: What it failed with.
        begun: Whether this run wrote to the volume, or an earlier one did and there is no further retry.
    """
    if isinstance(error, TargetBusy) or isinstance(job.target, DirectoryTargetSpec):
        # A busy target belongs to another worker; a directory shows no files before the archive is complete.
        return
    journal = None if job.journal is None else Journal.load(job.journal)
    if error.retry is not Retry.NEVER and journal is not None:
        return
    if begun or is_dirty(job.journal) or isinstance(job.target, FileTargetSpec):
        try:
            target = open_target(job.target)
        except TargetError:
            # Usually the same error that ended the transfer. The journal stays, so that the next attempt wipes.
            return
        try:
            target.wipe()
        finally:
            target.close()
    remove(job.journal)
