"""Looking into a pipe without losing what was read: what comes first is kept, and sent on before the rest."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from typing import Final, Self

from cdi.api.errors import UsageError

HELD_MOST: Final = 32 << 20
"""Bytes that are kept while somebody looks; an image shows itself much earlier, unless an archive is around it."""
_PIECE: Final = 1 << 18


class PeekedPipe:
    """Over an open descriptor, which is read from here only.  A context manager.

    `looking` gives a descriptor to look at, as often as wanted, and always from the start; after that `flow` gives one
    that carries everything, from the first byte to the end.
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
        """Returns when everything was sent on, or nobody reads it any more; at once after a failure."""
        if self._flow is not None:
            os.close(self._flow)
        if self._thread is not None and exc[0] is None:
            self._thread.join()

    @contextlib.contextmanager
    def looking(self) -> Iterator[int]:
        """A descriptor that reads from the first byte.  It ends early once `HELD_MOST` bytes were read."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._show, args=(writing,), name="peek")
        thread.start()
        try:
            yield reading
        finally:
            os.close(reading)
            thread.join()

    def _show(self, writing: int) -> None:
        """Until nobody looks any more."""
        sent = 0
        with open(writing, "wb", buffering=0) as pipe, contextlib.suppress(BrokenPipeError):
            while True:
                if sent == len(self._held):
                    if self._ended or sent >= HELD_MOST:
                        return
                    piece = self._read(writing)
                    if not piece:
                        return
                    self._held += piece
                sent += pipe.write(bytes(self._held[sent : sent + _PIECE])) or 0

    def _read(self, writing: int) -> bytes:
        """Some bytes; none at the end, or as soon as the other end of `writing` is closed."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        poller.register(writing, 0)
        if any(descriptor == writing for descriptor, _ in poller.poll()):
            return b""
        try:
            piece = os.read(self._descriptor, _PIECE)
        except OSError as error:
            self._failure = error
            return b""
        self._ended = not piece
        return piece

    def flow(self) -> int:
        """A descriptor for whoever takes the whole; raises `UsageError` where reading has failed."""
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
                # Nothing may have been held: then all is still to come.
                if self._ended or not (piece := self._read(writing)):
                    return
