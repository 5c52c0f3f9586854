"""Space that a directory holds back, so that what is in it can still be changed when its file system is full.

A controller has to write down why it cannot go on, and a volume has to be marked before it is deleted to make room.
Both replace an object, which takes a few blocks for a moment.  Nothing but that may use this space.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

SIZE: Final = 256 << 10
"""Bytes that are held back."""
PIECE: Final = 32 << 10
"""Bytes that are given back at a time: others who write into the full file system may take them first."""
_PLENTY: Final = 4
"""Times `SIZE` that must be free before that much is taken."""


class Ballast:
    """A file that holds nothing but space."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def restore(self) -> None:
        """Take the space, again where some was given back, unless the file system is nearly full.  Raises nothing."""
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
        """Give a piece back to the file system; False where nothing is left.  Raises `OSError`."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return False
        os.truncate(self._path, max(0, size - PIECE))
        return size > 0
