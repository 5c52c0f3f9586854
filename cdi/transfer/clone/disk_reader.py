"""Reader of the disk that is cloned: read-only, and limited to allocated ranges."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from cdi.api.errors import (
    SourceChanged,
    SourceNotSupported,
)
from cdi.source.file import error_from_errno, identity

SOURCE = "the disk of the source volume"

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# Without O_NONBLOCK, opening a named pipe in place of the disk would block until a writer opens it.


class DiskReader:
    """Disk file or block device; several threads may read concurrently."""

    def __init__(self, path: str) -> None:
        """Open the disk.

        Raises:
            SourceNotFound, SourceForbidden: it does not exist or is not readable.
            SourceNotSupported: it is neither a file nor a device.
        """
        self.path = path
        try:
            self._fd = os.open(path, _FLAGS)
            self._status = os.fstat(self._fd)
            self.device = stat.S_ISBLK(self._status.st_mode)
            if not self.device and not stat.S_ISREG(self._status.st_mode):
                os.close(self._fd)
                raise SourceNotSupported(
                    "the source is neither a disk file nor a block device", where=path, remedy="check the source volume"
                )
            if self.device:
                # The page cache of a device may be older than what another node wrote to it.
                with contextlib.suppress(OSError):
                    direct = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                    os.close(self._fd)
                    self._fd = direct
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise error_from_errno(error, path, SOURCE) from error
        self.allocated = self.size if self.device else min(self.size, self._status.st_blocks * 512)
        """Approximate bytes allocated: at least the disk's data."""

    @property
    def has_strong_validator(self) -> bool:
        """True if an equal validator proves equal content, which it does not for a device."""
        return not self.device

    def validator(self, volume: str) -> str:
        """Return the validator of the content; `volume` is the volume's identity."""
        status = self._status
        if self.device:
            return f"{volume}/block-{self.size}"
        # Device and inode numbers differ between nodes.
        return f"{volume}/{status.st_size:x}-{status.st_mtime_ns:x}"

    def check(self) -> None:
        """Raise `SourceChanged` if the content is known to have changed since the beginning."""
        try:
            status = os.fstat(self._fd)
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise error_from_errno(error, self.path, SOURCE) from error
        if size != self.size or (not self.device and identity(status) != identity(self._status)):
            raise SourceChanged("the disk was modified while it was cloned", where=self.path)

    def extents(self, start: int) -> Iterator[tuple[int, int]]:
        """Return the ranges with data from `start` on, as (begin, end); all if the file system reports no holes.

        Raises:
            CdiError: see `read`.
        """
        if self.device:
            return iter([(start, self.size)] if start < self.size else [])
        return self._extents(start)

    def _extents(self, start: int) -> Iterator[tuple[int, int]]:
        try:
            yield from data_extents(self._fd, self.size, start)
        except OSError as error:
            raise error_from_errno(error, self.path, SOURCE) from error

    def read(self, view: memoryview, offset: int) -> None:
        """Fill `view`; raise `SourceChanged` if the disk became shorter, `SourceUnreachable` if reading fails."""
        while view:
            try:
                got = os.preadv(self._fd, [view], offset)
            except OSError as error:
                raise error_from_errno(error, self.path, SOURCE) from error
            if not got:
                raise SourceChanged(
                    f"the disk was truncated: it ends at {offset} of {self.size} bytes", where=self.path
                )
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
    """Yield the ranges with data of a file of `size` bytes from `start` on, as (begin, end); may raise `OSError`."""
    at = start
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                # Only a hole is left, or the file was truncated, which the check at the end detects.
                return
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            begin, end = at, size
        if begin >= end:
            return
        yield begin, end
        at = end
