"""An empty disk."""

from __future__ import annotations

from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.job import Job
from cdi.target.open import open_target
from cdi.transfer.available_size import size_within_room
from cdi.transfer.control import TransferControl
from cdi.transfer.result import OutcomeBuilder


def make_blank(job: Job, control: TransferControl, result: OutcomeBuilder) -> None:
    """Make the target's disk ``job.size`` bytes of zeros, or what fits; the whole device if no size is given."""
    target = open_target(job.target)
    try:
        size = size_within_room(job, target, 0)
        if size is None:
            size = target.capacity
        if size is None:
            raise InvalidManifest("a blank disk needs a size")
        control.meter.total = 0
        target.resize(size)
        target.reset()
        if not target.reads_zero:
            target.zero(0, size)
        if job.policy.preallocation:
            target.preallocate()
            result.preallocated = True
        control.meter.phase = "flushing"
        target.commit()
        result.written = target.written
        result.format, result.path = "blank", "blank"
        result.virtual_size = result.disk_size = size
    except CdiError:
        target.wipe()
        raise
    finally:
        target.close()
