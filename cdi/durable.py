"""Small files that are there whole or not at all, and locks between processes.

For every package that does I/O; raises plain `OSError`s, which each of them maps to its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

SMALL = 1 << 20
"""No file that processes tell each other things by is larger, bytes."""


def write(
    path: str | os.PathLike[str], content: bytes, *, mode: int = 0o600, alone: bool = False, lasting: bool = True
) -> None:
    """Replace `path`, whose directory must exist; a reader sees the old or the new content, never a part.

    `lasting`: it survives a power failure once this returns.  `alone`: nobody else writes this file at the same time,
    so what one that was killed left half written, ``PATH.new``, is overwritten by the next.
    """
    name = os.fspath(path)
    directory = os.path.dirname(name)
    if alone:
        temporary, flags = f"{name}.new", os.O_TRUNC
    else:
        temporary, flags = os.path.join(directory, f".{os.urandom(16).hex()}"), os.O_EXCL
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode), "wb") as file:
            file.write(content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(temporary, name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if lasting:
        sync(directory or ".")


def sync(directory: str | os.PathLike[str]) -> None:
    """Return when the names in it are on stable storage."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str]) -> bytes | None:
    """None where there is none; not more than `SMALL` bytes of it."""
    try:
        with open(path, "rb") as file:
            return file.read(SMALL)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[int | None]:
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


def held(path: str | os.PathLike[str]) -> bool:
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
