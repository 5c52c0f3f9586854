"""The end of a transfer that failed: either it can be gone on with, or nothing of it is left on the volume."""

from __future__ import annotations

from cdi.api.errors import CdiError, Retry, TargetBusy, TargetError
from cdi.api.job import DirectoryTargetSpec, FileTargetSpec, Job
from cdi.target.open import open_target
from cdi.transfer.journal import Journal, forget, marked


def abandon(job: Job, error: CdiError, *, begun: bool) -> None:
    """Wipe the unfinished disk, unless `error` may pass and the journal says where to go on.

    `begun`: this run wrote to the volume, or another did and it ends for good.  What an earlier one did is also told by
    the journal it left.  A file's unfinished disk is removed in any case, as nothing can be made of it.  A device that
    nobody wrote to is left as it is.
    """
    if isinstance(error, TargetBusy) or isinstance(job.target, DirectoryTargetSpec):
        # It is somebody else's; a directory shows nothing before it is whole.
        return
    journal = None if job.journal is None else Journal.load(job.journal)
    if error.retry is not Retry.NEVER and journal is not None:
        return
    if begun or marked(job.journal) or isinstance(job.target, FileTargetSpec):
        try:
            target = open_target(job.target)
        except TargetError:
            # That it cannot be opened is mostly the error itself; its journal still tells the next attempt.
            return
        try:
            target.wipe()
        finally:
            target.close()
    forget(job.journal)
