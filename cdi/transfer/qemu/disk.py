"""Target of a conversion, inspected before QEMU opens it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from cdi.api.errors import InternalError
from cdi.target.errors import map_os_errors

SECTOR = 512
"""Unit in which QEMU measures a disk; it rounds up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetDisk:
    """Properties of the target before the daemon opens it."""

    path: str
    is_block: bool
    reads_zero: bool
    size: int
    direct: bool
    """Whether it can be opened with O_DIRECT."""
    offloads_zero: bool
    """Whether zeroing a range is a request instead of a transfer."""
    allocated: int = 0
    """Bytes of storage that a file occupies."""


def inspect_target(path: str, *, is_block: bool, reads_zero: bool) -> TargetDisk:
    """Return the properties of the target.

    Raises:
        TargetError: the target cannot be opened for writing.
        InternalError: it is not of the kind that `is_block` says.
    """
    with map_os_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            size = os.lseek(handle, 0, os.SEEK_END)
        finally:
            os.close(handle)
    if stat.S_ISBLK(status.st_mode) != is_block or not (is_block or stat.S_ISREG(status.st_mode)):
        raise InternalError("target type does not match the job", where=path)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
        direct = True
    except OSError:
        direct = False  # tmpfs, some network and overlay file systems
    return TargetDisk(
        path=path,
        is_block=is_block,
        reads_zero=reads_zero,
        size=size,
        direct=direct,
        offloads_zero=not is_block or device_offloads_zero(status.st_rdev),
        allocated=0 if is_block else status.st_blocks * SECTOR,
    )


def process_write_bytes(process: int) -> int | None:
    """Return the bytes that a process wrote to storage, directly or as dirty pages; None if the kernel hides it.

    See proc(5), ``/proc/PID/io``. Some file systems in memory do not count.
    """
    try:
        with open(f"/proc/{process}/io", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("write_bytes:")), None)
    except (OSError, ValueError, IndexError):
        return None


def allocated_growth(target: TargetDisk) -> int:
    """Return by how much a file's allocation has grown since QEMU opened it, in bytes."""
    if target.is_block:
        return 0
    try:
        return max(0, os.stat(target.path).st_blocks * SECTOR - target.allocated)
    except OSError:
        return 0


def device_offloads_zero(device: int) -> bool:
    """Return whether a block device supports "write zeroes" (Documentation/ABI/stable/sysfs-block)."""
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for queue in (f"{base}/queue", f"{base}/../queue"):  # a partition has the queue of its disk
        try:
            with open(f"{queue}/write_zeroes_max_bytes", encoding="ascii") as file:
                return int(file.read()) > 0
        except (OSError, ValueError):
            continue
    return False
