"""Target that writes to a block device."""

from __future__ import annotations

import os
import stat

from cdi.api.errors import InternalError, TargetPermission, TargetTooSmall, TargetUnsuitable
from cdi.api.job import BlockTargetSpec
from cdi.target import linux
from cdi.target.direct_io import DirectWriter
from cdi.target.errors import UNSUPPORTED, error_from_errno, map_os_errors

EDGE = 1 << 20
"""Bytes at each end of a device that are overwritten first when it is wiped: they hold partition tables and headers."""
STEP = 1 << 30
"""Maximum number of bytes zeroed by one system call, so that it can be interrupted between calls."""


_REMEDY = (
    "grant write permission to the worker's user (107); in a cluster, set device_ownership_from_security_context = true"
    " in the settings of the node's container runtime (containerd, CRI-O)"
)


class BlockDevice:
    """A `cdi.target.base.Target` on a block device.

    The device is opened exclusively: if it is mounted, or used by another worker, that raises `TargetBusy`.
    """

    def __init__(self, spec: BlockTargetSpec) -> None:
        """Open the device.

        Raises:
            TargetBusy: The device is in use.
            TargetPermission: The device may not be written.
            TargetUnsuitable: The path is not a block device.
        """
        self.path = spec.path
        self.reads_zero = spec.known_zero
        self._io: DirectWriter | None = None
        with map_os_errors(spec.path):
            # Check the type first: O_EXCL without O_CREAT is an exclusive open only for block devices.
            if not stat.S_ISBLK(os.stat(spec.path).st_mode):
                raise TargetUnsuitable(
                    "the target is not a block device", where=spec.path, remedy="use a file target, or give the device"
                )
            direct = _open_exclusive(spec.path)
            try:
                block = linux.logical_block_size(direct)
                self._capacity = os.lseek(direct, 0, os.SEEK_END)
                # Open it via /proc: the path may refer to another device by now.
                cached = os.open(f"/proc/self/fd/{direct}", os.O_RDWR | os.O_CLOEXEC)
            except BaseException:
                os.close(direct)
                raise
        self.capacity: int | None = self._capacity
        self._io = DirectWriter(cached, direct, block)
        # The kernel refuses to zero a range with dirty pages (EBUSY) unless the call uses the descriptor that was
        # opened exclusively.
        self._claimed = direct
        self.size = self._capacity
        """Size of the disk in bytes; that of the device until `resize`."""

    @property
    def written(self) -> int:
        return self._descriptors.written

    def resize(self, size: int) -> None:
        if size > self._capacity:
            raise TargetTooSmall(f"the disk has {size} bytes, the device holds {self._capacity} bytes", where=self.path)
        self.size = size

    def write(self, view: memoryview, offset: int) -> None:
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        self._check(offset, len(view))
        try:
            self._descriptors.write(view, offset)
        except OSError as error:
            raise error_from_errno(error, self.path) from error

    def zero(self, offset: int, length: int) -> None:
        """Discard the blocks if the device guarantees that they then read as zeros; otherwise write zeros."""
        self._check(offset, length)
        try:
            self._zero(offset, length)
        except OSError as error:
            raise error_from_errno(error, self.path) from error

    def preallocate(self) -> None:
        """Do nothing: a device has all its blocks, and a thin pool below it manages its own allocation."""

    def flush(self) -> None:
        with map_os_errors(self.path):
            os.fsync(self._descriptors.cached)

    def reset(self) -> None:
        """Discard the disk's range if the device supports that, and set `reads_zero` accordingly.

        Otherwise the old data between the first and last MiB stays until it is overwritten: `reads_zero` is then False,
        so the following import writes or zeroes every byte.
        """
        try:
            forgotten = self._fallocate_range(0, self.size, (linux.PUNCH_HOLE,))
            if not forgotten:
                self._zero_edges()
        except OSError as error:
            raise error_from_errno(error, self.path) from error
        self.reads_zero = forgotten

    def commit(self) -> None:
        self.flush()

    def wipe(self) -> None:
        """Zero the disk's range, its ends first, and flush, so that nothing of it can be read afterwards.

        If this is interrupted, at least the first and last MiB are zeroed.
        """
        try:
            self._zero_edges()
            os.fsync(self._descriptors.cached)
            self._zero(0, self.size)
            os.fsync(self._descriptors.cached)
        except OSError as error:
            raise error_from_errno(error, self.path) from error
        self.reads_zero = self.size == self._capacity

    def close(self) -> None:
        if self._io is not None:
            io, self._io = self._io, None
            with map_os_errors(self.path):
                io.close()

    @property
    def _descriptors(self) -> DirectWriter:
        if self._io is None:
            raise InternalError("the device is closed", where=self.path)
        return self._io

    def _zero_edges(self) -> None:
        head = min(EDGE, self.size)
        self._descriptors.write_zeros(0, head)
        tail = max(head, self.size - EDGE)
        self._descriptors.write_zeros(tail, self.size - tail)

    def _zero(self, offset: int, length: int) -> None:
        io = self._descriptors
        # Zero whole blocks only: the kernel drops the page cache of the range, which must not include adjacent data.
        start = -(-offset // io.block) * io.block
        stop = (offset + length) // io.block * io.block
        if start >= stop:
            io.write_zeros(offset, length)
            return
        io.write_zeros(offset, start - offset)
        if not self._fallocate_range(start, stop - start, (linux.PUNCH_HOLE, linux.ZERO_RANGE)):
            self._zero_out(start, stop - start)
        io.write_zeros(stop, offset + length - stop)

    def _fallocate_range(self, offset: int, length: int, modes: tuple[int, ...]) -> bool:
        """Zero the range with the first of `modes` that the device supports, and return whether there is one.

        An incomplete block at the end of a device is written. For devices, the kernel supports PUNCH_HOLE only if the
        range reads as zeros afterwards.
        """
        block = self._descriptors.block
        end = offset + length // block * block
        for mode in modes:
            at = offset
            try:
                while at < end:
                    step = min(STEP, end - at)
                    linux.fallocate(self._claimed, mode | linux.KEEP_SIZE, at, step)
                    at += step
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                continue
            self._descriptors.write_zeros(end, offset + length - end)
            return True
        return False

    def _zero_out(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, STEP):
            step = min(STEP, offset + length - at)
            try:
                linux.zero_out(self._claimed, at, step)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._descriptors.write_zeros(at, step)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InternalError(
                f"{length} bytes at {offset} do not lie within the disk of {self.size} bytes", where=self.path
            )


def _open_exclusive(path: str) -> int:
    """Open the device exclusively, for direct I/O, and return the descriptor."""
    try:
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC)
    except PermissionError as error:
        # In pods, this is usually due to a setting of the node's container runtime, which no manifest shows.
        raise TargetPermission(f"cannot write to the device: {error.strerror}", where=path, remedy=_REMEDY) from error
