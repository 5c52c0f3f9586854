"""A source that reads a descriptor once, sequentially: standard input, a pipe or a socket."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from typing import Self

from cdi.api.errors import (
    InternalError,
    Interrupted,
    SourceNotFound,
    SourceNotSupported,
    SourceStalled,
    SourceTooLong,
    SourceTruncated,
    SourceUnreachable,
)
from cdi.source.base import Ending, SourceFacts


class PipeSource:
    """A `cdi.source.base.Source` without ranges that can be opened once.

    `length` is in bytes and is checked if given. `stall_timeout` is in seconds; None waits without limit (for keyboard
    input or a slow program). The descriptor is duplicated, and the caller keeps its own.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        length: int | None = None,
        stall_timeout: float | None = None,
        location: str | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._length = length
        self._stall = stall_timeout
        self._location = location or ("standard input" if descriptor == 0 else f"descriptor {descriptor}")
        self._lock = threading.Lock()
        self._opened = False

    def probe(self) -> SourceFacts:
        """Return the facts; raise `SourceNotFound` for a closed descriptor, `SourceNotSupported` for a directory."""
        try:
            mode = os.fstat(self._descriptor).st_mode
        except (OSError, OverflowError) as error:
            raise SourceNotFound(
                "the descriptor is not open", where=self._location, remedy="give an open descriptor"
            ) from error
        if stat.S_ISDIR(mode):
            raise SourceNotSupported(
                "standard input is a directory", where=self._location, remedy="give a file or pipe as standard input"
            )
        return SourceFacts(location=self._location, length=self._length, ranges=False, ending=Ending.PIPE)

    def open(self, offset: int = 0, length: int | None = None) -> StreamReader:
        """Return the only reader; raise `SourceUnreachable` on a second call, as the bytes cannot be read again."""
        self.probe()
        if offset:
            raise InternalError("range requested from a stream", where=self._location)
        with self._lock:
            if self._opened:
                raise SourceUnreachable(
                    "a stream can be read only once", where=self._location, remedy="start it again from the beginning"
                )
            self._opened = True
        return StreamReader(
            os.dup(self._descriptor),
            length=self._length,
            limit=length,
            stall_timeout=self._stall,
            location=self._location,
        )

    def sibling(self, name: str) -> None:
        del name

    def close(self) -> None:
        """Do nothing: readers have their own descriptor, and the caller owns the original one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class StreamReader:
    """The reader of a `PipeSource` of `length` bytes, of which at most `limit` are read."""

    def __init__(
        self, fd: int, *, length: int | None, limit: int | None, stall_timeout: float | None, location: str
    ) -> None:
        self._fd: int | None = fd
        self._length = length
        self._limit = limit
        self._stall = stall_timeout
        self._location = location
        self._done = 0
        self._lock = threading.Lock()
        self._aborted = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poller = select.poll()
        self._poller.register(self._wake_read, select.POLLIN)
        self._poller.register(fd, select.POLLIN)

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; return 0 at the end.

        Raises `SourceStalled`, `SourceTruncated`, `SourceTooLong`, `SourceUnreachable` or `Interrupted`.
        """
        if self._fd is None:
            raise InternalError("the reader is closed", where=self._location)
        bounds = [bound for bound in (self._length, self._limit) if bound is not None]
        left = min(bounds) - self._done if bounds else len(view)
        if not len(view):
            return 0
        if left <= 0:
            return 0
        count = self._receive(self._fd, view[:left])
        if not count and self._length is not None and self._done < self._length:
            raise SourceTruncated(f"the stream ended after {self._done} of {self._length} bytes", where=self._location)
        self._done += count
        if count and self._done == self._length:
            self._expect_eof(self._fd)
        return count

    def _expect_eof(self, fd: int) -> None:
        """Raise `SourceTooLong` if more than the announced bytes are already available.

        This does not wait for the end of the stream: a sender may keep its end open to read a reply.
        """
        if self._poller.poll(0) and not self._aborted and self._receive(fd, memoryview(bytearray(1))):
            raise SourceTooLong(f"the stream exceeds the announced {self._length} bytes", where=self._location)

    def _receive(self, fd: int, view: memoryview) -> int:
        while True:
            ready = self._poller.poll(None if self._stall is None else self._stall * 1000)
            if self._aborted:
                raise Interrupted("reading was interrupted", where=self._location)
            if not ready:
                raise SourceStalled(
                    f"no data received for {self._stall:g} s",
                    where=self._location,
                    remedy="check the program that sends the stream",
                )
            try:
                return os.readv(fd, [view])
            except BlockingIOError:
                continue  # another process made it non-blocking and read the data first
            except OSError as error:
                raise SourceUnreachable(
                    f"reading failed: {error.strerror}",
                    where=self._location,
                    remedy="check the program that sends the stream",
                ) from error

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._fd is not None:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_write, b"\0")

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is not None:
                for each in (fd, self._wake_read, self._wake_write):
                    os.close(each)
