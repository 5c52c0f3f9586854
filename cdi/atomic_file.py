"""Atomic file writes, locks between processes, and the mapping of operating system errors.

Shared by every package that does I/O. The functions raise plain `OSError`s; `mapped` converts them to this project's
errors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from cdi.api.errors import TargetError, TargetFull, TargetIo, TargetPermission, TargetUnsuitable

MAX_SMALL_FILE = 1 << 20
"""Maximum size in bytes of the files that processes use to communicate."""


def write(
    path: str | os.PathLike[str], content: bytes, *, mode: int = 0o600, single_writer: bool = False, fsync: bool = True
) -> None:
    """Replace a file atomically: a reader sees either the old or the new content.

    Args:
        path: File to replace; its directory must exist.
        content: New content.
        mode: Permissions of the new file.
        single_writer: No other process writes this file at the same time. The temporary file is then ``PATH.new``; one
            that a killed writer left behind is overwritten, and its blocks are reused, so space from `reserve` is
            sufficient.
        fsync: Flush the file and its directory, so that the new content survives a power failure.
    """
    name = os.fspath(path)
    directory = os.path.dirname(name)
    if single_writer:
        temporary, flags = f"{name}.new", 0
    else:
        temporary, flags = os.path.join(directory, f".{os.urandom(16).hex()}"), os.O_EXCL
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode), "wb") as file:
            file.write(content)
            file.truncate()
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        os.replace(temporary, name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if fsync:
        sync(directory or ".")


def reserve(path: str | os.PathLike[str], size: int) -> None:
    """Reserve space for the next ``write(path, alone=True)`` of at most `size` bytes.

    There is no guarantee on a file system that does not support ``fallocate(2)``.

    Raises:
        OSError: There is not enough space.
    """
    temporary = f"{os.fspath(path)}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            os.unlink(temporary)
            raise
    finally:
        os.close(descriptor)


def sync(directory: str | os.PathLike[str]) -> None:
    """Flush the entries of a directory to stable storage."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str]) -> bytes | None:
    """Read at most `MAX_SMALL_FILE` bytes of a file; return None if it does not exist."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_SMALL_FILE)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[int | None]:
    """Hold an exclusive lock; yield its descriptor, or None if another process holds it and `wait` is False."""
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


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Return whether a process holds the lock.

    The check uses a shared lock, so that two concurrent checks do not mistake each other for the holder.
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


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
_MISPLACED = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY}
)


def is_full(error: OSError) -> bool:
    """Return whether the file system or the user's quota has no space left."""
    return error.errno in _FULL


def storage_error(error: OSError, what: str, where: str, *, elsewhere: str = "") -> TargetError:
    """Return the `TargetError` for an `OSError` in this program's own storage.

    Args:
        error: Error of a system call.
        what: What is stored there, as the subject of the message.
        where: Path for the message.
        elsewhere: How to choose another location, for the remedy.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    instead = f", or {elsewhere}" if elsewhere else ""
    if is_full(error):
        remedy = f"free space in the file system of {where}{instead}; the work then continues automatically"
        return TargetFull(f"no space left for {what}: {reason}", where=where, remedy=remedy)
    message = f"cannot use {what}: {reason}"
    if error.errno == errno.EROFS:
        return TargetPermission(message, where=where, remedy=f"mount the file system writable{instead}")
    if error.errno in _FORBIDDEN:
        remedy = f"grant write permission to user {os.geteuid()}{instead}"
        return TargetPermission(message, where=where, remedy=remedy)
    if error.errno in _MISPLACED:
        return TargetUnsuitable(message, where=where, remedy=f"check this path{instead}")
    return TargetIo(message, where=where)


@contextlib.contextmanager
def mapped(what: str, where: str | os.PathLike[str], *, elsewhere: str = "") -> Iterator[None]:
    """Raise every `OSError` from the block as its `storage_error`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what, os.fspath(where), elsewhere=elsewhere) from error
