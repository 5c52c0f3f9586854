"""Disk space reserved for updates to stored objects when the file system is full.

A controller must be able to record why it cannot continue, and a volume must be marked before it is deleted to free
space. Both replace an object, which needs a few blocks for a moment. Only such updates may use the reserved space.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

SIZE: Final = 256 << 10
"""Size of the reserve in bytes."""
CHUNK_SIZE: Final = 32 << 10
"""Bytes released at a time; other writers on the full file system may claim released blocks first."""
_PLENTY: Final = 4
"""Free space, as a multiple of `SIZE`, that is required before the reserve is allocated."""


class Ballast:
    """A preallocated file without content."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def restore(self) -> None:
        """Allocate the reserve, or top it up after `release`, unless the file system is nearly full.

        Errors are ignored.
        """
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(descriptor).st_size >= SIZE:
                    return
                found = os.fstatvfs(descriptor)
                if found.f_bavail * found.f_frsize >= _PLENTY * SIZE:
                    os.posix_fallocate(descriptor, 0, SIZE)
            finally:
                os.close(descriptor)

    def release(self) -> bool:
        """Return up to `CHUNK_SIZE` bytes to the file system; return False if the reserve is used up.

        Raises:
            OSError: The file cannot be truncated.
        """
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return False
        os.truncate(self._path, max(0, size - CHUNK_SIZE))
        return size > 0
