"""Small files that are there whole or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

SMALL = 1 << 20
"""No file that processes tell each other things by is larger, bytes."""


def write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path`, so that it survives a power failure; its directory must exist."""
    temporary = path.parent / f".{uuid.uuid4().hex}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path) -> bytes | None:
    """None where there is none; not more than `SMALL` bytes of it."""
    try:
        with open(path, "rb") as file:
            return file.read(SMALL)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int | None]:
    """Hold the lock; gives its descriptor, or None where it is held elsewhere and `wait` is False."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether some process holds the lock.

    Asked with a shared lock, so that two who ask at the same time do not take each other for the holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
