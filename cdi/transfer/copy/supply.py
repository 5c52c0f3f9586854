"""What a source is to those who send it: a disk, read from anywhere on, or a tree, read from its beginning."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from cdi.target.buffer import data_runs
from cdi.transfer.copy.digest import CHUNK, leaf_of
from cdi.transfer.copy.frames import Hello
from cdi.transfer.copy.origin import Origin
from cdi.transfer.copy.reading import Passage, Piece

READERS = 2
"""Threads that read a disk, look for zeros and hash the rest."""


class Supply(Protocol):
    """The content as it was found once; of content that was changed since another one is made."""

    size: int
    """Of the disk, bytes; of a tree, about how much it is."""
    data: int
    """About how much is allocated, bytes."""
    proven: bool
    """What an earlier connection sent under the same validator is the same content."""

    def hello(self, job: str, *, fresh: bool) -> Hello:
        """The first words to a target."""
        ...

    def passage(self, start: int) -> Passage: ...

    def whole(self, position: int) -> int:
        """The size, once a passage came to its end at `position`.

        Raises `SourceChanged` where the content is known to be another by now.
        """
        ...

    def close(self) -> None: ...


class DiskSupply:
    """Raises as `Origin`."""

    def __init__(self, path: str, identity: str) -> None:
        self.origin = Origin(path)
        self.size = self.origin.size
        self.data = self.origin.allocated
        self.proven = self.origin.proven
        self.validator = self.origin.validator(identity)

    def hello(self, job: str, *, fresh: bool) -> Hello:
        return Hello(
            job=job,
            content="kubevirt",
            size=self.size,
            data=self.data,
            validator=self.validator,
            fresh=fresh,
        )

    def passage(self, start: int) -> Passage:
        return DiskPassage(self.origin, start)

    def whole(self, position: int) -> int:  # noqa: ARG002 - what follows the last chunk is zero
        self.origin.check()
        return self.size

    def close(self) -> None:
        self.origin.close()


class Stock:
    """The supply of now: that of a content that was changed makes way for another."""

    def __init__(self, make: Callable[[], Supply]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[Supply] = []
        self._stale = True

    def current(self) -> Supply:
        """Raises what making one raises."""
        with self._lock:
            if self._stale:
                self._made.append(self._make())
                self._stale = False
            return self._made[-1]

    def renew(self, supply: Supply) -> None:
        """`supply` is not the content any more.  Who reads of it finds out."""
        with self._lock:
            self._stale = self._stale or supply is self._made[-1]

    def close(self) -> None:
        with self._lock:
            while self._made:
                self._made.pop().close()
            self._stale = True


class DiskPassage:
    """Where there is data."""

    threads = READERS

    def __init__(self, origin: Origin, start: int) -> None:
        self._origin = origin
        self._offsets = _chunks(origin, start, origin.size)

    def next(self) -> int | None:
        return next(self._offsets, None)

    def read(self, offset: int, buffer: memoryview) -> Piece:
        view = buffer[: min(CHUNK, self._origin.size - offset)]
        self._origin.read(view, offset)
        runs = tuple(data_runs(view))
        leaf = leaf_of(runs, (view[start:stop] for start, stop in runs)) if runs else b""
        return Piece(view=view, runs=runs, leaf=leaf)


def _chunks(origin: Origin, start: int, stop: int) -> Iterator[int]:
    """The offsets of chunks that hold data."""
    at = start
    for begin, end in origin.extents(start):
        first = max(at, begin // CHUNK * CHUNK)
        for at in range(first, min(end, stop), CHUNK):
            yield at
        at = max(first, -(-min(end, stop) // CHUNK) * CHUNK)
        if end >= stop:
            return
