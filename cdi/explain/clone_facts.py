"""Facts about a clone: in a cluster from the annotations of its PVC, on one machine from the file system."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import CLONE_PLAN
from cdi.api.quantity import Quantity
from cdi.image.sizes import format_size
from cdi.local.home import Home
from cdi.reconcile.actions import CloneJob
from cdi.reconcile.clone.plan_annotation import ClonePlanRecord, requested_source
from cdi.reconcile.clone.status import costs
from cdi.reconcile.clone.strategy import Fallback
from cdi.store.base import Object

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


def clone_facts(claim: Object | None) -> CloneFacts | None:
    """Return the facts in a cluster, or None if the PVC is no clone or nothing has been decided yet."""
    notes = annotations_of(claim)
    record, source = CLONE_PLAN.read(ClonePlanRecord, notes), requested_source(notes)
    if claim is None or record is None or source is None:
        return None
    namespace, name, snapshot = source
    asked = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage")
    return CloneFacts(
        source=f"{'VolumeSnapshot' if snapshot else 'PVC'} {namespace}/{name}",
        size=record.size,
        allocated=None,
        reflink=False,
        strategy=record.strategy.value,
        why=record.message,
        fallbacks=record.fallbacks,
        costs=costs(record, None if asked is None else Quantity.parse(str(asked)).bytes),
    )


def local_clone_facts(home: Home, job: CloneJob) -> CloneFacts:
    """Return the facts on one machine; without a size if the source has no disk."""
    path = Path(job.source)
    size = allocated = None
    with contextlib.suppress(OSError):
        if job.content == "archive":
            allocated = sum(os.lstat(one).st_blocks * 512 for one in path.rglob("*"))
        else:
            status = path.stat()
            size, allocated = status.st_size, status.st_blocks * 512
    reflink = job.content == "kubevirt" and can_reflink(home.volumes)
    shares = "the filesystem supports reflinks" if reflink else "the filesystem does not support reflinks"
    return CloneFacts(
        source=job.source,
        size=size,
        allocated=allocated,
        reflink=reflink,
        strategy="reflink" if reflink else "copy",
        why=f"reflink: {shares}" if reflink else f"copy: {shares if job.content == 'kubevirt' else 'of each file'}",
        costs=(_cost(job, allocated, reflink=reflink),),
    )


def _cost(job: CloneJob, allocated: int | None, *, reflink: bool) -> str:
    taken = "" if allocated is None else f", {format_size(allocated)} ({allocated} bytes)"
    if not reflink:
        return f"the source's data is copied by the kernel on this machine{taken}"
    return f"{format_size(job.size)} are preallocated" if job.preallocation and job.size else "no block is copied"


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
