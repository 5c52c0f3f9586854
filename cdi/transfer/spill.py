"""What arrived before it was known where it belongs: kept in memory while it is little, on scratch beyond."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right

from cdi.api.errors import ScratchNeeded
from cdi.target.failure import mapped

MEMORY_LIMIT = 16 << 20
SMALL_RUNS = 1 << 13
"""So many of the runs that are hardly ever asked for are kept, the latest ones; they are of one sector at most."""


class Spill:
    """Runs of a stream, by their offset in it; added in ascending order.

    `directory` is where a nameless file is made once `MEMORY_LIMIT` is passed; without it, that is `ScratchNeeded`.
    """

    def __init__(self, directory: str | None, limit: int = MEMORY_LIMIT) -> None:
        self._directory = directory
        self._limit = limit
        # A hostile image makes very many runs of very few bytes: three numbers each, and no object.
        self._starts = array("Q")
        self._sizes = array("Q")
        self._places = array("q")
        """Offset in the scratch file; for those in memory the offset in `_memory`, inverted."""
        self._memory = bytearray()
        self._small_starts: list[int] = []
        self._small_runs: list[bytes] = []
        self._file: int | None = None
        self.scratch = 0
        """Bytes written to scratch."""

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
        """The same for a run that is hardly ever asked for; after very many more of them it is forgotten."""
        self._small_starts.append(offset)
        self._small_runs.append(bytes(data))
        if len(self._small_runs) >= 2 * SMALL_RUNS:
            del self._small_starts[:SMALL_RUNS], self._small_runs[:SMALL_RUNS]

    def _to_scratch(self, data: memoryview) -> int:
        """Gives where it lies in the file."""
        if self._directory is None:
            raise ScratchNeeded(
                "the image keeps more data before the tables that place it than memory may hold",
                remedy="serve the image with byte ranges, rewrite it with qemu-img convert, or allow scratch space",
            )
        # Hardly any image comes here, and the module takes a fifth of a worker's start.
        import tempfile

        with mapped(self._directory):
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
        """As many of the `size` bytes at `offset` as are held without a gap; b"" where the first is not."""
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
                with mapped(self._directory or ""):
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
