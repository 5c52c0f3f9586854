"""Clone sources: a disk, readable from any offset, or a directory tree, readable from its beginning."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from cdi.target.buffer import data_runs
from cdi.transfer.clone.digest import CHUNK, leaf_hash
from cdi.transfer.clone.disk_reader import DiskReader
from cdi.transfer.clone.fanout import ChunkReader, Piece
from cdi.transfer.clone.frames import Hello

READERS = 2
"""Number of threads that read a disk, detect zeros and hash the rest."""


class CloneSource(Protocol):
    """Content in one state; a changed content needs another instance."""

    size: int
    """Size of the disk in bytes; of a tree, approximately."""
    data: int
    """Approximate allocated bytes."""
    has_strong_validator: bool
    """Whether data that was sent earlier under an equal validator is known to be equal."""

    def hello(self, job: str, *, fresh: bool) -> Hello:
        """Return the first message to a target."""
        ...

    def open(self, start: int) -> ChunkReader: ...

    def final_size(self, position: int) -> int:
        """Return the size, once a pass has ended at `position`.

        Raises:
            SourceChanged: the content is known to have changed.
        """
        ...

    def close(self) -> None: ...


class DiskSource:
    """Disk source; raises what `DiskReader` raises."""

    def __init__(self, path: str, identity: str) -> None:
        self.origin = DiskReader(path)
        self.size = self.origin.size
        self.data = self.origin.allocated
        self.has_strong_validator = self.origin.has_strong_validator
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

    def open(self, start: int) -> ChunkReader:
        return DiskChunkReader(self.origin, start)

    def final_size(self, position: int) -> int:  # noqa: ARG002 - everything after the last chunk is zero
        self.origin.check()
        return self.size

    def close(self) -> None:
        self.origin.close()


class CurrentSource:
    """Holder of the current source, which is replaced when its content changes."""

    def __init__(self, make: Callable[[], CloneSource]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[CloneSource] = []
        self._stale = True

    def current(self) -> CloneSource:
        """Return the current source; raise what creating it raises."""
        with self._lock:
            if self._stale:
                self._made.append(self._make())
                self._stale = False
            return self._made[-1]

    def renew(self, source: CloneSource) -> None:
        """Mark `source` as outdated; its readers detect that themselves."""
        with self._lock:
            self._stale = self._stale or source is self._made[-1]

    def close(self) -> None:
        with self._lock:
            while self._made:
                self._made.pop().close()
            self._stale = True


class DiskChunkReader:
    """Chunks of a disk that contain data."""

    threads = READERS

    def __init__(self, origin: DiskReader, start: int) -> None:
        self._origin = origin
        self._offsets = _chunks(origin, start, origin.size)

    def next(self) -> int | None:
        return next(self._offsets, None)

    def read(self, offset: int, buffer: memoryview) -> Piece:
        view = buffer[: min(CHUNK, self._origin.size - offset)]
        self._origin.read(view, offset)
        runs = tuple(data_runs(view))
        leaf = leaf_hash(runs, (view[start:stop] for start, stop in runs)) if runs else b""
        return Piece(view=view, runs=runs, leaf=leaf)


def _chunks(origin: DiskReader, start: int, stop: int) -> Iterator[int]:
    """Yield the offsets of chunks that contain data."""
    at = start
    for begin, end in origin.extents(start):
        first = max(at, begin // CHUNK * CHUNK)
        for at in range(first, min(end, stop), CHUNK):
            yield at
        at = max(first, -(-min(end, stop) // CHUNK) * CHUNK)
        if end >= stop:
            return
