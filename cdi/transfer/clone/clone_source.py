"""Clone sources: a disk, readable at any offset, or a directory tree, readable from its beginning."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from cdi.source.peer_chunks import CHUNK, leaf_hash
from cdi.source.peer_messages import PROTOCOL, PeerFacts
from cdi.target.buffer import data_runs
from cdi.transfer.clone.disk_reader import DiskReader
from cdi.transfer.clone.window import ChunkReader, Piece, SharedWindow

_INSTANCE = secrets.token_hex(8)
"""Identifies this process."""


class CloneSource(Protocol):
    """Content in one state; a changed content needs another instance."""

    def facts(self) -> PeerFacts: ...

    def check(self) -> None:
        """Raise `SourceChanged` if the content is known to have changed."""
        ...

    def reader(self, window: SharedWindow) -> ChunkReader:
        """Return what a request reads."""
        ...

    def close(self) -> None: ...


class DiskSource:
    """Disk source; raises what `DiskReader` raises."""

    def __init__(self, path: str, identity: str) -> None:
        self.disk = DiskReader(path)
        self.validator = self.disk.validator(identity)

    def facts(self) -> PeerFacts:
        disk, strong = self.disk, self.disk.has_strong_validator
        return PeerFacts(
            protocol=PROTOCOL,
            content="kubevirt",
            size=disk.size,
            data=disk.allocated,
            validator=self.validator,
            is_strong=strong,
            tag=self.validator if strong else f"{self.validator} {_INSTANCE}",
        )

    def check(self) -> None:
        self.disk.check()

    def reader(self, window: SharedWindow) -> DiskSource:
        del window
        return self

    def read(self, offset: int, buffer: memoryview) -> Piece:
        """Return a chunk; raise `SourceChanged` if the disk is known to have changed."""
        view = buffer[: min(CHUNK, self.disk.size - offset)]
        self.disk.read(view, offset)
        self.disk.check()
        runs = tuple(data_runs(view))
        leaf = leaf_hash(runs, (view[start:stop] for start, stop in runs)) if runs else b""
        return Piece(view=view, runs=runs, leaf=leaf)

    def chunks(self, start: int, stop: int) -> Iterator[int]:
        """Yield the offsets of the chunks between two offsets that may have data, in order."""
        at = start
        for begin, end in self.disk.extents(start):
            first, last = max(at, begin // CHUNK * CHUNK), min(end, stop)
            if first < last:
                yield from range(first, last, CHUNK)
                at = first + -(-(last - first) // CHUNK) * CHUNK
            if end >= stop:
                return

    def close(self) -> None:
        self.disk.close()


class CurrentSource:
    """Holder of the current source, which is replaced when its content changes."""

    def __init__(self, make: Callable[[], CloneSource], changed: Callable[[], None]) -> None:
        """Create the holder; `changed` is called once for each state that is outdated."""
        self._make = make
        self._changed = changed
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
            if self._stale or source is not self._made[-1]:
                return
            self._stale = True
        self._changed()

    def close(self) -> None:
        with self._lock:
            while self._made:
                self._made.pop().close()
            self._stale = True
