"""Preview of an import: ``cdi explain``.

The reconcilers determine what the worker would be given (`cdi.explain.local_dry_run`); the transfer's own code examines
the source (`cdi.explain.source_check`) and plans (`cdi.image.plan`). Nothing is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cdi.api.copy import CopyTargetJob
from cdi.api.errors import CdiError, Conflict, InternalError, NotFound, TargetFull, by_code
from cdi.api.job import BlankSourceSpec, Job, SourceSpec, StreamSourceSpec
from cdi.api.overhead import required
from cdi.api.phases import EventReason, Reason
from cdi.client.with_progress import OnProgress, run_with_progress
from cdi.explain.cron import CronFacts, ask_source
from cdi.explain.local_dry_run import Course, DryRunResult
from cdi.explain.source_check import Ask, Findings, examine
from cdi.image.plan import Plan, PlanInput
from cdi.image.plan import plan as plan_for
from cdi.image.sizes import format_size
from cdi.local.home import DISK, Home
from cdi.reconcile.actions import CloneJob
from cdi.reconcile.clone.planner import Fallback
from cdi.source.base import SourceFacts
from cdi.store.base import Key
from cdi.transfer.control import TransferControl
from cdi.transfer.plan_input import plan_input, target_kind

MEMORY: Final = 192 << 20
"""Bytes of memory that a worker's process tree stays below."""
_RETRIES: Final = 2
_STALL: Final = 30.0
_FICLONE: Final = 0x40049409


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneFacts:
    """Facts about a clone; sizes are bytes."""

    source: str
    """The path of the source's disk or archive directory; in a cluster its kind, namespace and name."""
    size: int | None
    """The size of the source's disk; in a cluster of its volume."""
    allocated: int | None
    """The space that the source takes, and a copy without shared blocks would take; None if unknown."""
    reflink: bool
    """Whether the file system shares blocks, so that the copy takes no space."""
    strategy: str
    """One of ``reflink`` and ``copy``; in a cluster of ``snapshot``, ``csi-clone`` and ``copy``."""
    why: str
    """The strategy and the reason for it."""
    fallbacks: tuple[Fallback, ...] = ()
    """The reasons why the preferred strategy is not possible."""
    costs: tuple[str, ...] = ()
    """Descriptions of what is created and copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The space on the volume's file system, in bytes."""

    path: str
    free: int
    needed: int | None
    """None if not known in advance."""
    exact: bool
    """Whether `needed` is exact; otherwise it is an upper limit."""


@dataclass(slots=True, kw_only=True)
class Explanation:
    """The preview of one DataVolume."""

    course: Course
    job: Job | None = None
    found: Findings | None = None
    plan: Plan | None = None
    clone: CloneFacts | None = None
    cron: CronFacts | None = None
    """The DataImportCron that would create the DataVolume."""
    requested: int | None = None
    """The requested size of the disk in bytes."""
    required: int | None = None
    """Bytes that a PVC given as spec.pvc has to request for the image's disk."""
    space: Space | None = None
    refusal: CdiError | None = None
    """The error that the import would end with."""
    place: list[tuple[str, str]] = field(default_factory=list)
    """Placement in a cluster: labels, and how and where the volume would be created."""
    notes: list[str] = field(default_factory=list)

    def refuse(self, error: CdiError) -> None:
        """Record an error; only the first one counts."""
        self.refusal = self.refusal or error


def explain(
    foresight: DryRunResult,
    home: Home,
    key: Key,
    *,
    upload: Path | None = None,
    stream: int | None = None,
    sized: bool = True,
    ask: Ask | None = None,
    cron: CronFacts | None = None,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Preview the DataVolume `key`.

    Args:
        foresight: The simulation of the reconcilers.
        home: The CDI_HOME.
        key: The DataVolume.
        upload: The file to upload.
        stream: The descriptor to upload from; it is read.
        sized: Whether the DataVolume's size counts; otherwise the image's own size is used.
        ask: What to examine.
        cron: The DataImportCron that would create it, whose source is polled as well.
        on_progress: Called with the progress.

    Returns:
        The preview; the error that the import would end with is its ``refusal``.

    Raises:
        NotFound: There is no such DataVolume.
        Interrupted: The examination was cancelled.
    """
    given = upload if stream is None else Path("/dev/stdin")
    course = foresight.course(key, upload=given)
    told = Explanation(course=course, cron=cron)
    if course.failure is not None:
        told.refuse(course.failure)
        return told
    if course.work is None:
        blocked = _blocked(course)
        if blocked is not None:
            told.refuse(blocked)
        return told
    _look_at_volume(home, course, told)
    if isinstance(course.work, CloneJob):
        _explain_clone(home, course.work, told)
        return told
    if isinstance(course.work, CopyTargetJob):
        raise InternalError("clones over the network are supported only in clusters")
    job = course.work
    policy = replace(
        job.policy, retries=min(job.policy.retries, _RETRIES), stall_timeout=min(job.policy.stall_timeout, _STALL)
    )
    source: SourceSpec = job.source if stream is None else StreamSourceSpec(descriptor=stream)
    job = replace(job, policy=policy, source=source, size=job.size if sized else None)
    told.job, told.requested = job, job.size
    if isinstance(job.source, BlankSourceSpec):
        plan_blank(job, told)
    else:
        control = TransferControl(job)
        wanted = ask or Ask(expected=True, allocation=True)
        told.found = run_with_progress(lambda: examine(job, control, wanted), control, on_progress)
        if told.found.refusal is not None:
            told.refuse(told.found.refusal)
        plan_image(job, told.found, told)
    if cron is not None and (failure := ask_source(cron, job, on_progress)) is not None:
        told.refuse(failure)
    _look_at_space(home, job, told)
    return told


def _blocked(course: Course) -> CdiError | None:
    """Return the error that a DataVolume waits for, if that will not be resolved automatically."""
    if course.reason in (Reason.NOT_FOUND, EventReason.CLONE_WITHOUT_SOURCE):
        return NotFound(course.waits.partition(". Try: ")[0], remedy=course.waits.partition(". Try: ")[2] or None)
    kind = by_code(course.reason)
    if kind.__name__ == course.reason:
        return kind(course.waits, remedy="")
    return None


def _look_at_volume(home: Home, course: Course, told: Explanation) -> None:
    """Record an error if the volume's directory holds files of the user; an import would not touch it."""
    directory = home.volume(course.key.namespace, course.key.name)
    with home.mapped("the objects"):
        claimed = (home.objects / "persistentvolumeclaims" / course.key.namespace / f"{course.key.name}.json").exists()
    with contextlib.suppress(OSError):
        if not claimed and any(directory.iterdir()):
            told.refuse(
                Conflict(f"the directory {directory} already holds files", remedy="remove them, or choose another name")
            )


# --- plans --------------------------------------------------------------------------------------------------------


def plan_blank(job: Job, told: Explanation) -> None:
    """Plan a blank disk."""
    facts = PlanInput(
        length=0,
        ranges=False,
        image=None,
        target=target_kind(job),
        size=job.size,
        preallocation=job.policy.preallocation,
        scratch=job.scratch is not None,
    )
    try:
        told.plan = plan_for(facts)
    except CdiError as error:
        told.refuse(error)


def plan_image(job: Job, found: Findings, told: Explanation) -> None:
    """Plan an image's transfer and the size of its PVC; record the error if it is impossible."""
    facts: SourceFacts | None = found.facts
    if facts is None or (found.image is None and not found.archive):
        return
    image = found.image
    if image is not None and image.virtual_size is None and found.virtual_size is not None:
        image = replace(image, virtual_size=found.virtual_size)
    if found.virtual_size is not None:
        told.required = required(found.virtual_size)
    digest = found.expected is not None and found.expected.algorithm is not None
    promised = found.expected is not None and bool(found.expected.promises)
    try:
        told.plan = plan_for(
            plan_input(
                job,
                facts,
                image=image,
                wrappers=found.wrappers,
                capacity=None,
                reads_zero=True,
                digest_wanted=digest,
                digest_promised=promised,
                engine="qemu" if found.many_extents else None,
            )
        )
    except CdiError as error:
        told.refuse(error)
    if found.many_extents:
        told.notes.append("the image has more extents than fit into memory: QEMU reads it")


# --- clones -------------------------------------------------------------------------------------------------------


def _explain_clone(home: Home, work: CloneJob, told: Explanation) -> None:
    path = Path(work.source)
    size = allocated = None
    with contextlib.suppress(OSError):
        if work.content == "archive":
            allocated = sum(os.lstat(one).st_blocks * 512 for one in path.rglob("*"))
        else:
            status = path.stat()
            size, allocated = status.st_size, status.st_blocks * 512
    if work.content == "kubevirt" and size is None:
        told.refuse(NotFound(f"the source has no disk at {path}", remedy=f"the disk of a volume is named {DISK}"))
    reflink = work.content == "kubevirt" and can_reflink(home.volumes)
    shares = "the filesystem supports reflinks" if reflink else "the filesystem does not support reflinks"
    told.clone = CloneFacts(
        source=work.source,
        size=size,
        allocated=allocated,
        reflink=reflink,
        strategy="reflink" if reflink else "copy",
        why=f"reflink: {shares}" if reflink else f"copy: {shares if work.content == 'kubevirt' else 'of each file'}",
        costs=(_cost_of_clone(work, allocated, reflink=reflink),),
    )
    told.requested = work.size
    needed = work.size if work.preallocation else 0 if reflink else allocated
    _reckon(home, needed, told, exact=True)


def _cost_of_clone(work: CloneJob, allocated: int | None, *, reflink: bool) -> str:
    taken = "" if allocated is None else f", {format_size(allocated)} ({allocated} bytes)"
    if not reflink:
        return f"the source's data is copied by the kernel on this machine{taken}"
    return f"{format_size(work.size)} are preallocated" if work.preallocation and work.size else "no block is copied"


def can_reflink(directory: Path) -> bool:
    """Return whether files in this directory can share blocks, by trying it with unnamed files (ioctl_ficlone(2))."""
    try:
        with (
            tempfile.TemporaryFile(dir=directory, buffering=0) as source,
            tempfile.TemporaryFile(dir=directory, buffering=0) as copy,
        ):
            source.write(bytes(4096))
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


# --- space --------------------------------------------------------------------------------------------------------


def _look_at_space(home: Home, job: Job, told: Explanation) -> None:
    plan, found = told.plan, told.found
    if plan is None:
        return
    if job.policy.preallocation and plan.disk_size is not None:
        needed, exact = plan.disk_size, True
    elif found is not None and found.data_bytes is not None:
        needed, exact = found.data_bytes, True
    elif plan.write_bytes is None:
        needed, exact = None, False
    else:
        needed, exact = plan.write_bytes, False
    if needed is not None and plan.scratch_bytes:
        needed += plan.scratch_bytes
    _reckon(home, needed, told, exact=exact)


def _existing(directory: Path) -> Path:
    """Return the directory or its nearest existing ancestor; CDI_HOME is created by the first command that writes."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def _reckon(home: Home, needed: int | None, told: Explanation, *, exact: bool) -> None:
    with home.mapped("the volumes"):
        found = os.statvfs(_existing(home.volumes))
    free = found.f_bavail * found.f_frsize
    told.space = Space(path=str(home.volumes), free=free, needed=needed, exact=exact)
    if needed is None or needed <= free:
        return
    if exact:
        told.refuse(
            TargetFull(
                f"the disk needs {format_size(needed)} ({needed} bytes), but the volume has {format_size(free)} "
                f"({free} bytes) free",
                where=str(home.volumes),
            )
        )
    else:
        told.notes.append(
            f"the volume may run full: up to {format_size(needed)} are written, {format_size(free)} are free"
        )
