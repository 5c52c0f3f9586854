"""Peeking into a pipe without losing data: the first bytes are kept, and sent on before the rest."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from typing import Final, Self

from cdi.api.errors import UsageError

MAX_BUFFERED: Final = 32 << 20
"""Bytes that are kept while peeking; an image is identified much earlier, unless it is in an archive."""
_CHUNK_SIZE: Final = 1 << 18


class PeekedPipe:
    """A pipe that can be peeked into; a context manager that has to be the only reader of the descriptor.

    `looking` yields a descriptor that starts at the first byte, as often as needed; afterwards `flow` returns one that
    carries all data from the first byte to the end.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = bytearray()
        self._ended = False
        self._flow: int | None = None
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Wait until everything was sent on or the reader has closed its end; do not wait after an error."""
        if self._flow is not None:
            os.close(self._flow)
        if self._thread is not None and exc[0] is None:
            self._thread.join()

    @contextlib.contextmanager
    def looking(self) -> Iterator[int]:
        """Yield a descriptor that starts at the first byte and ends once `MAX_BUFFERED` bytes were read."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._show, args=(writing,), name="peek")
        thread.start()
        try:
            yield reading
        finally:
            os.close(reading)
            thread.join()

    def _show(self, writing: int) -> None:
        """Write to the pipe until its reader closes it."""
        sent = 0
        with open(writing, "wb", buffering=0) as pipe, contextlib.suppress(BrokenPipeError):
            while True:
                if sent == len(self._held):
                    if self._ended or sent >= MAX_BUFFERED:
                        return
                    piece = self._read(writing)
                    if not piece:
                        return
                    self._held += piece
                sent += pipe.write(bytes(self._held[sent : sent + _CHUNK_SIZE])) or 0

    def _read(self, writing: int) -> bytes:
        """Return some bytes; none at the end, or as soon as the other end of `writing` is closed."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        poller.register(writing, 0)
        if any(descriptor == writing for descriptor, _ in poller.poll()):
            return b""
        try:
            piece = os.read(self._descriptor, _CHUNK_SIZE)
        except OSError as error:
            self._failure = error
            return b""
        self._ended = not piece
        return piece

    def flow(self) -> int:
        """Return a descriptor that carries all data; raise `UsageError` if reading has failed."""
        if self._failure is not None:
            raise UsageError(f"reading failed: {self._failure.strerror}", where="standard input", remedy="try again")
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._flow = reading
        self._thread = threading.Thread(target=self._send, args=(writing,), name="flow", daemon=True)
        self._thread.start()
        return reading

    def _send(self, writing: int) -> None:
        with open(writing, "wb", buffering=0) as pipe, contextlib.suppress(BrokenPipeError):
            piece = bytes(self._held)
            self._held = bytearray()
            while True:
                view = memoryview(piece)
                while view:
                    view = view[pipe.write(view) or 0 :]
                # Nothing may have been kept; then all data is still to be read.
                if self._ended or not (piece := self._read(writing)):
                    return
