"""A source that reads a regular file or a block device of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from typing import Self

from cdi.api.errors import (
    InternalError,
    Interrupted,
    SourceChanged,
    SourceError,
    SourceForbidden,
    SourceNotFound,
    SourceNotSupported,
    SourceTruncated,
    SourceUnreachable,
)
from cdi.source.base import SourceFacts

_BLKGETSIZE64 = 0x80081272


class FileSource:
    """A `cdi.source.base.Source` over a path.

    The file is opened once, so replacing it by a rename has no effect. A write during the transfer is detected by size
    and modification time on each read, which then raises `SourceChanged`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._facts: SourceFacts | None = None
        self._closed = False

    def probe(self) -> SourceFacts:
        """Open the file and return its facts.

        Raises `SourceNotFound`, `SourceForbidden`, or `SourceNotSupported` if it is neither a regular file nor a block
        device.
        """
        with self._lock:
            if self._facts is None:
                if self._closed:
                    raise InternalError("the source is closed", where=self._path)
                self._facts = self._open()
            return self._facts

    def _open(self) -> SourceFacts:
        try:
            # Without O_NONBLOCK, opening a FIFO would block until it has a writer, before it could be rejected.
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise error_from_errno(error, self._path) from error
        except ValueError as error:
            raise SourceNotFound("the path contains a null character", where=repr(self._path)[:200]) from error
        try:
            status = os.fstat(fd)
            length = _length(fd, status, self._path)
            os.set_blocking(fd, True)
            facts = SourceFacts(
                location=self._path,
                length=length,
                ranges=True,
                validator=identity(status),
                name=os.path.basename(self._path) or None,
            )
        except OSError as error:
            os.close(fd)
            raise error_from_errno(error, self._path) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return facts

    def open(self, offset: int = 0, length: int | None = None) -> FileReader:
        facts = self.probe()
        total = facts.length or 0
        length = total - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > total:
            raise InternalError(f"the range {offset}+{length} is not within {total}", where=self._path)
        with self._lock:
            if self._fd is None:
                raise InternalError("the source is closed", where=self._path)
            # The reader gets its own descriptor, so that closing the source does not affect it.
            return FileReader(os.dup(self._fd), facts, offset, length)

    def sibling(self, name: str) -> FileSource | None:
        """Return the file beside this one; None if `name` is a path."""
        if not name or "/" in name or "\0" in name or name in {".", ".."}:
            return None
        return FileSource(os.path.join(os.path.dirname(self._path), name))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FileReader:
    """A reader of one byte range of a `FileSource`."""

    def __init__(self, fd: int, facts: SourceFacts, offset: int, length: int) -> None:
        self._fd: int | None = fd
        self._facts = facts
        self._position = offset
        self._end = offset + length
        self._aborted = False

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; return 0 at the end.

        Raises `SourceTruncated`, `SourceChanged`, `SourceUnreachable` if the device fails, or `Interrupted`.
        """
        if self._aborted:
            raise Interrupted("reading was interrupted", where=self._facts.location)
        if self._fd is None:
            raise InternalError("the reader is closed", where=self._facts.location)
        left = self._end - self._position
        if not left or not len(view):
            return 0
        try:
            count = os.preadv(self._fd, [view[:left] if left < len(view) else view], self._position)
            status = os.fstat(self._fd)
        except OSError as error:
            raise error_from_errno(error, self._facts.location) from error
        if not count:
            raise SourceTruncated(
                f"the file ends at {self._position} of {self._facts.length} bytes", where=self._facts.location
            )
        if identity(status) != self._facts.validator:
            raise SourceChanged("the file was modified while it was read", where=self._facts.location)
        self._position += count
        return count

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def identity(status: os.stat_result) -> str:
    """Return a validator that changes with the content of a regular file; a device has only its number."""
    if stat.S_ISBLK(status.st_mode):
        return f"block:{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return f"{status.st_dev:x}-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def _length(fd: int, status: os.stat_result, path: str) -> int:
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if stat.S_ISBLK(status.st_mode):
        (length,) = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
        return int(length)
    raise SourceNotSupported(
        f"this is {_kind(status.st_mode)}",
        where=path,
        remedy="give a regular file or a block device; pipe anything else to standard input",
    )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
    }
    return kinds.get(stat.S_IFMT(mode), "neither a file nor a block device")


def error_from_errno(error: OSError, path: str, what: str = "the file") -> SourceError:
    """Return the `SourceError` for an `OSError` of local storage; `what` is read there, for the message."""
    reason = error.strerror or type(error).__name__
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return SourceNotFound(f"{what} does not exist", where=path, remedy="check the path")
        case errno.ELOOP:
            return SourceNotSupported(f"{what} is a symbolic link that is not followed", where=path)
        case errno.EACCES | errno.EPERM:
            remedy = f"grant read permission to user {os.geteuid()}"
            return SourceForbidden(f"cannot read {what}: {reason}", where=path, remedy=remedy)
        case _:
            remedy = "check the storage: kernel log, file system, device"
            return SourceUnreachable(f"cannot read {what}: {reason}", where=path, remedy=remedy)
