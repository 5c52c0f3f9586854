"""Standard streams that are closed, full, or have no reader."""

from __future__ import annotations

import fcntl
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from cdi.api.errors import OutputClosed, OutputFailed, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def prepare() -> None:
    """Make the three standard streams safe to use; call it before any file is opened.

    The next file that is opened, for instance a disk, would get the number of a closed standard descriptor and receive
    what is printed. So each closed one is opened on ``/dev/null``: output to it is dropped, and reading standard input
    fails with ``EBADF``, because an empty input could be taken for an empty image.

    Afterwards a write to standard output raises `OutputFailed`, or `OutputClosed` if its reader has closed the pipe,
    and a write to standard error never fails. Text that the encoding cannot express is escaped.
    """
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        if not _is_open(descriptor):
            # open() takes the lowest free descriptor, which is this one: those below it are open by now.
            os.open(os.devnull, os.O_WRONLY)
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(_STDIN, closefd=False)  # noqa: SIM115  it lives as long as the process
    sys.stdout = _text(_Output(_STDOUT, "wb", closefd=False), sys.stdout)
    sys.stderr = _text(_Diagnostics(_STDERR, "wb", closefd=False), sys.stderr)


def require_input() -> None:
    """Raise `UsageError` if standard input is closed or cannot be read."""
    try:
        access = fcntl.fcntl(_STDIN, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        access = os.O_WRONLY
    if access == os.O_WRONLY:
        raise UsageError("standard input is closed", remedy="redirect a file or pipe to it, or give a file name")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _text(raw: io.FileIO, replaced: TextIO | None) -> io.TextIOWrapper:
    encoding = getattr(replaced, "encoding", None)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=raw.isatty()
    )


class _Output(io.FileIO):
    """Standard output that raises its first failure and drops later writes.

    The buffer above keeps what could not be written, and would try again when the interpreter ends.
    """

    _failed = False

    def write(self, data: Buffer, /) -> int:
        if self._failed:
            return memoryview(data).nbytes
        try:
            return _write_some(self, super().write, data)
        except BrokenPipeError as error:
            self._failed = True
            raise OutputClosed("the reader closed standard output") from error
        except OSError as error:
            self._failed = True
            raise OutputFailed(f"cannot write to standard output: {error.strerror}") from error


class _Diagnostics(io.FileIO):
    """Standard error that drops what cannot be written: there is no other place to report it."""

    def write(self, data: Buffer, /) -> int:
        try:
            return _write_some(self, super().write, data)
        except OSError:
            return memoryview(data).nbytes


def _write_some(file: io.FileIO, write: Callable[[Buffer], int | None], data: Buffer) -> int:
    """Write at least one byte, waiting if another process has made the shared descriptor non-blocking."""
    while (written := write(data)) is None:
        poller = select.poll()
        poller.register(file, select.POLLOUT)
        poller.poll()
    return written
