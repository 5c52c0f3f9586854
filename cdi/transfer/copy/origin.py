"""The disk that is cloned: read only, and only where something is allocated."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from cdi.api.errors import (
    CdiError,
    SourceChanged,
    SourceForbidden,
    SourceNotFound,
    SourceNotSupported,
    SourceUnreachable,
)
from cdi.source.file import identity

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# A named pipe in the disk's place would not be opened before somebody writes to it.


class Origin:
    """A disk file or block device.  Several threads may read at once."""

    def __init__(self, path: str) -> None:
        """Raises `SourceNotFound`, `SourceForbidden`, `SourceNotSupported` (neither file nor device)."""
        self.path = path
        try:
            self._fd = os.open(path, _FLAGS)
            self._status = os.fstat(self._fd)
            self.device = stat.S_ISBLK(self._status.st_mode)
            if not self.device and not stat.S_ISREG(self._status.st_mode):
                os.close(self._fd)
                raise SourceNotSupported(
                    "this is neither a disk file nor a block device", where=path, remedy="look at the source volume"
                )
            if self.device:
                # Pages that the kernel kept of a device may be older than what another node wrote to it.
                with contextlib.suppress(OSError):
                    direct = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                    os.close(self._fd)
                    self._fd = direct
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise failure_of(error, path) from error
        self.allocated = self.size if self.device else min(self.size, self._status.st_blocks * 512)
        """Bytes, about: not less than the disk's data."""

    @property
    def proven(self) -> bool:
        """The validator tells whether the content is the same; a device says nothing of what is on it."""
        return not self.device

    def validator(self, volume: str) -> str:
        """Of the content, on the volume of that identity."""
        status = self._status
        if self.device:
            return f"{volume}/block-{self.size}"
        # Neither the device's nor the inode's number means anything on another node.
        return f"{volume}/{status.st_size:x}-{status.st_mtime_ns:x}"

    def check(self) -> None:
        """Raises `SourceChanged` where the content is known to be another than at the beginning."""
        try:
            status = os.fstat(self._fd)
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise failure_of(error, self.path) from error
        if size != self.size or (not self.device and identity(status) != identity(self._status)):
            raise SourceChanged("the disk was written to while it was cloned", where=self.path)

    def extents(self, start: int) -> Iterator[tuple[int, int]]:
        """Where there is data from `start` on, begin and end; everything, where the file system does not tell.

        Raises the errors of `read`.
        """
        if self.device:
            return iter([(start, self.size)] if start < self.size else [])
        return self._extents(start)

    def _extents(self, start: int) -> Iterator[tuple[int, int]]:
        try:
            yield from data_extents(self._fd, self.size, start)
        except OSError as error:
            raise failure_of(error, self.path) from error

    def read(self, view: memoryview, offset: int) -> None:
        """Fill `view`.  Raises `SourceChanged` where the disk became shorter, `SourceUnreachable` where it fails."""
        while view:
            try:
                got = os.preadv(self._fd, [view], offset)
            except OSError as error:
                raise failure_of(error, self.path) from error
            if not got:
                raise SourceChanged(f"the disk ends at {offset} of {self.size} bytes", where=self.path)
            view, offset = view[got:], offset + got

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def data_extents(descriptor: int, size: int, start: int) -> Iterator[tuple[int, int]]:
    """Where a file of `size` bytes has data from `start` on, begin and end.  Raises `OSError`."""
    at = start
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                # Nothing but a hole, or shorter than it was: the end tells.
                return
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            begin, end = at, size
        if begin >= end:
            return
        yield begin, end
        at = end


def failure_of(error: OSError, path: str) -> CdiError:
    """What a source volume's error means."""
    text = error.strerror or type(error).__name__
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return SourceNotFound("the source volume holds no disk", where=path, remedy="look at the source volume")
        case errno.ELOOP:
            return SourceNotSupported("the disk is a symbolic link", where=path, remedy="look at the source volume")
        case errno.EACCES | errno.EPERM:
            return SourceForbidden(
                f"the source volume may not be read: {text}", where=path, remedy="let the worker's user (107) read it"
            )
        case _:
            return SourceUnreachable(
                f"reading failed: {text}", where=path, remedy="look at the storage: kernel log, file system, device"
            )
