"""Buffer for stream data whose place on the disk is not known yet, in memory and then in scratch space."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right

from cdi.api.errors import ScratchNeeded
from cdi.target.errors import map_os_errors

MEMORY_LIMIT = 16 << 20
MAX_SMALL_RUNS = 1 << 13
"""Minimum number of the latest small runs that are kept; each has at most one sector, and is rarely needed."""


class SpillBuffer:
    """Byte runs of a stream, added in ascending order and found by their offset.

    If they exceed `MEMORY_LIMIT`, they go to an unlinked file in `directory`; without one, `ScratchNeeded` is raised.
    """

    def __init__(self, directory: str | None, limit: int = MEMORY_LIMIT) -> None:
        self._directory = directory
        self._limit = limit
        # A malicious image can make very many tiny runs, so each takes three numbers and no object.
        self._starts = array("Q")
        self._sizes = array("Q")
        self._places = array("q")
        """Offset of each run in the scratch file, or the bitwise inverse of its offset in `_memory`."""
        self._memory = bytearray()
        self._small_starts: list[int] = []
        self._small_runs: list[bytes] = []
        self._file: int | None = None
        self.scratch = 0
        """Bytes written to scratch space."""

    def add(self, offset: int, data: memoryview) -> None:
        if not data:
            return
        if len(self._memory) + len(data) <= self._limit:
            place = ~len(self._memory)
            self._memory += data
        else:
            place = self._to_scratch(data)
        if self._starts and self._starts[-1] + self._sizes[-1] == offset and (place < 0) == (self._places[-1] < 0):
            self._sizes[-1] += len(data)
            return
        self._starts.append(offset)
        self._sizes.append(len(data))
        self._places.append(place)

    def add_small(self, offset: int, data: memoryview) -> None:
        """Add a run that is rarely needed; it is dropped after many more such runs were added."""
        self._small_starts.append(offset)
        self._small_runs.append(bytes(data))
        if len(self._small_runs) >= 2 * MAX_SMALL_RUNS:
            del self._small_starts[:MAX_SMALL_RUNS], self._small_runs[:MAX_SMALL_RUNS]

    def _to_scratch(self, data: memoryview) -> int:
        """Append `data` to the scratch file and return its offset there."""
        if self._directory is None:
            raise ScratchNeeded(
                "the image has more data before its mapping tables than can be kept in memory",
                remedy="serve the image with byte ranges, rewrite it with qemu-img convert, or allow scratch space",
            )
        # Few images need it, and importing this module takes a fifth of a worker's start-up time.
        import tempfile

        with map_os_errors(self._directory):
            if self._file is None:
                self._file, name = tempfile.mkstemp(prefix=".spill-", dir=self._directory)
                os.unlink(name)
            position, view = self.scratch, data
            while view:
                count = os.pwrite(self._file, view, position)
                position, view = position + count, view[count:]
        place, self.scratch = self.scratch, position
        return place

    def read(self, offset: int, size: int) -> bytes:
        """Return the stored bytes from `offset` up to the first gap, at most `size`; empty if the first is missing."""
        found = self._read_small(offset, size)
        position = bisect_right(self._starts, offset + len(found)) - 1
        while 0 <= position < len(self._starts) and len(found) < size:
            skip = offset + len(found) - self._starts[position]
            length, place = self._sizes[position], self._places[position]
            if skip < 0 or skip >= length:
                break
            wanted = min(length - skip, size - len(found))
            if place < 0:
                found += self._memory[~place + skip : ~place + skip + wanted]
            else:
                assert self._file is not None
                with map_os_errors(self._directory or ""):
                    data = os.pread(self._file, wanted, place + skip)
                found += data
                if len(data) < wanted:
                    break
            position += 1
        return bytes(found)

    def _read_small(self, offset: int, size: int) -> bytearray:
        position = bisect_right(self._small_starts, offset) - 1
        if position < 0:
            return bytearray()
        skip = offset - self._small_starts[position]
        return bytearray(self._small_runs[position][skip : skip + size])

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
