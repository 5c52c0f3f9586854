"""Size of a disk on a file system that has less room than the volume's size promises."""

from __future__ import annotations

from cdi.api.job import FileTargetSpec, Job
from cdi.image.sizes import MEBI
from cdi.target.base import Target
from cdi.target.file import FILESYSTEM_RESERVE, DiskFile
from cdi.transfer.journal import Journal


def size_within_room(job: Job, target: Target, virtual: int | None) -> int | None:
    """Return the size that the disk gets, at most `job.size`.

    The size of a volume's disk is derived from the volume's size, of which a file system may reserve more than the
    expected overhead: ext4 keeps 5 % for root. As KubeVirt's importer does, the disk is then made smaller: what is
    available, less the overhead, in whole MiB. It never becomes smaller than the image, which may be sparse.

    Args:
        job: The job.
        target: Its target, with what an earlier attempt left.
        virtual: Size of the image in bytes; None if it is known only at its end.

    Returns:
        The size in bytes, or None if the job sets none.
    """
    spec = job.target
    if job.size is None or not isinstance(spec, FileTargetSpec) or not isinstance(target, DiskFile):
        return job.size
    if spec.volume is None or (virtual is None and not job.policy.preallocation):
        return job.size
    if _is_resumable(job, target):
        # Its blocks and the file system's own have changed what is available.
        return target.size
    room = target.room
    if room * 1000 >= job.size * (1000 + spec.overhead) + 1000 * FILESYSTEM_RESERVE:
        return job.size
    # Imported on demand: the fractions module costs more than the rest of a plan.
    from fractions import Fraction

    from cdi.api.overhead import round_down, usable

    fits = min(usable(room, Fraction(spec.overhead, 1000)), round_down(room - FILESYSTEM_RESERVE, MEBI))
    return min(job.size, max(fits, virtual or 0)) if fits > 0 else job.size


def _is_resumable(job: Job, target: DiskFile) -> bool:
    journal = None if job.journal is None else Journal.load(job.journal)
    return (
        journal is not None
        and job.size is not None
        and journal.job == job.id
        and journal.disk_size == target.size
        and 0 < target.size <= job.size
    )
