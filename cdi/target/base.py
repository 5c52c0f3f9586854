"""What the engine needs of a disk that is being written."""

from __future__ import annotations

from typing import Protocol

ALIGNMENT = 4096
"""Buffers, offsets and lengths that are multiples of this can be written past the page cache."""


class Target(Protocol):
    """A disk of fixed capacity.  All calls block, raise only `TargetError`s, and may come from several threads as
    long as their ranges do not overlap.
    """

    capacity: int | None
    """Bytes that the device has; None for a file, which is as large as it is made."""

    size: int
    """Bytes of the disk as it stands: what `resize` made it, or an earlier attempt."""

    reads_zero: bool
    """What was never written reads as zeros."""

    @property
    def written(self) -> int:
        """Bytes handed to the kernel so far."""
        ...

    def resize(self, size: int) -> None:
        """Make the disk `size` bytes (a file), or see that the device holds as much (`TargetTooSmall`)."""
        ...

    def write(self, view: memoryview, offset: int) -> None:
        """All of `view`, never past the size (that is a defect and raises `InternalError`)."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, freeing its blocks where that is possible."""
        ...

    def preallocate(self) -> None:
        """Give every block of the disk its place, keeping what is there."""
        ...

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        ...

    def reset(self) -> None:
        """Forget everything written: nothing of it can be read afterwards."""
        ...

    def commit(self) -> None:
        """The disk is verified: flush, and give it its final name."""
        ...

    def wipe(self) -> None:
        """The disk is refused: remove it, or make its content unreadable."""
        ...

    def close(self) -> None:
        """Let go; what was written stays for the next attempt."""
        ...
