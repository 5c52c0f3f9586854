"""Interface of a disk that is being written."""

from __future__ import annotations

from typing import Protocol

ALIGNMENT = 4096
"""Alignment in bytes of buffers, offsets and lengths that direct I/O requires."""


class Target(Protocol):
    """A disk that is being written.

    All methods block and raise only `TargetError`s. They may be called from several threads if the ranges do not
    overlap.
    """

    capacity: int | None
    """Size of the device in bytes; None for a file, whose size is set by `resize`."""

    size: int
    """Current size of the disk in bytes, as set by `resize` or an earlier attempt."""

    reads_zero: bool
    """Whether ranges that were never written read as zeros."""

    @property
    def written(self) -> int:
        """Bytes passed to the kernel so far."""
        ...

    def resize(self, size: int) -> None:
        """Set the disk's size in bytes; raise `TargetTooSmall` if a device is smaller."""
        ...

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of `view`; raise `InternalError` if it extends past the disk's size, which is a defect."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, and free its blocks if possible."""
        ...

    def preallocate(self) -> None:
        """Allocate every block of the disk, and keep the data."""
        ...

    def flush(self) -> None:
        """Flush everything written to stable storage."""
        ...

    def reset(self) -> None:
        """Discard everything written, so that it cannot be read afterwards."""
        ...

    def commit(self) -> None:
        """Flush the verified disk and give it its final name."""
        ...

    def wipe(self) -> None:
        """Remove the failed disk, or make its content unreadable."""
        ...

    def close(self) -> None:
        """Release the disk; what was written is kept for the next attempt."""
        ...
