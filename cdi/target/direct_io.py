"""Writer with two descriptors of one disk: direct I/O for whole blocks, buffered I/O for the rest.

Copying through the page cache takes more processor time than everything else in an import of a raw image. A call never
writes a block both ways, and a partial block always goes through the page cache, where the kernel merges the bytes of
several writers. So writers whose ranges meet inside a block need no lock.
"""

from __future__ import annotations

import errno
import os
import threading

from cdi.target.base import ALIGNMENT
from cdi.target.buffer import aligned_buffer, is_aligned

BOUNCE = 1 << 20
"""Size in bytes of the buffer into which unaligned memory is copied; each writing thread has one."""

_ZEROS = aligned_buffer(BOUNCE)


class DirectWriter:
    """One or two open descriptors of a disk.  Raises `OSError`s, which the owner maps."""

    def __init__(self, cached: int, direct: int | None, block: int = ALIGNMENT) -> None:
        """Take over the descriptors.

        Args:
            cached: Descriptor for buffered I/O.
            direct: Descriptor opened with ``O_DIRECT``; None if that is not supported.
            block: Block size of direct I/O in bytes.
        """
        self.cached = cached
        self.direct = direct
        self.block = max(block, ALIGNMENT)
        self.written = 0
        """Bytes passed to the kernel."""
        self._lock = threading.Lock()
        self._local = threading.local()

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of `view`, which is contiguous bytes, at `offset`."""
        size = len(view)
        head = min(-offset % self.block, size)
        body = (size - head) // self.block * self.block
        if self.direct is None or not body:
            self._cached(view, offset)
            return
        if head:
            self._cached(view[:head], offset)
        self._write_direct(view[head : head + body], offset + head)
        if head + body < size:
            self._cached(view[head + body :], offset + head + body)

    def write_zeros(self, offset: int, length: int) -> None:
        """Write zeros, for ranges that the kernel cannot zero otherwise."""
        end = offset + length
        while offset < end:
            # The first piece ends on a block boundary, so that the other pieces are whole blocks.
            step = min(BOUNCE - offset % BOUNCE, end - offset)
            self.write(_ZEROS[:step], offset)
            offset += step

    def close(self) -> None:
        for fd in (self.direct, self.cached):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.direct, self.cached = None, -1

    def _count(self, size: int) -> None:
        with self._lock:
            self.written += size

    def _cached(self, view: memoryview, offset: int) -> None:
        while view:
            done = os.pwrite(self.cached, view, offset)
            self._count(done)
            view, offset = view[done:], offset + done

    def _write_direct(self, view: memoryview, offset: int) -> None:
        if is_aligned(view):
            self._direct(view, offset)
            return
        bounce = getattr(self._local, "bounce", None)
        if bounce is None:
            bounce = self._local.bounce = aligned_buffer(max(BOUNCE, self.block))
        for at in range(0, len(view), len(bounce)):
            piece = view[at : at + len(bounce)]
            aligned = bounce[: len(piece)]
            aligned[:] = piece
            self._direct(aligned, offset + at)

    def _direct(self, view: memoryview, offset: int) -> None:
        while view:
            fd = self.direct
            if fd is None or len(view) % self.block:
                # There is no direct I/O, or a short write ended inside a block.
                self._cached(view, offset)
                return
            try:
                done = os.pwrite(fd, view, offset)
            except OSError as error:
                # A few file systems accept O_DIRECT at open but reject the write. Another thread may be using the
                # descriptor, so it stays open until close().
                if error.errno != errno.EINVAL:
                    raise
                self._cached(view, offset)
                return
            self._count(done)
            view, offset = view[done:], offset + done
