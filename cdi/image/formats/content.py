"""Reading for format inspectors: a generator yields the ranges it needs and is sent their bytes.

Performs no I/O: `cdi.image.inspect.Inspector` passes the requests on to its caller.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeVar

from cdi.api.errors import ImageUnsafe
from cdi.image.info import ImageInfo

HEAD: Final = 64 << 10
"""Size in bytes of the first request: it contains every signature and most headers."""
BUDGET: Final = 4 << 20
"""Maximum bytes read from one image; for a stream also how far into it the inspection goes."""

Want = tuple[int, int]
_T = TypeVar("_T")
Steps = Generator[Want, bytes, _T]
Inspection = Steps[ImageInfo]


class RandomAccessContent:
    """Bytes read so far, and what is known about the rest.

    Reads from a stream must move forward: bytes before the furthest one read, except for the head, are unavailable.
    """

    __slots__ = ("_budget", "_furthest", "head", "length", "seekable")

    def __init__(self, length: int | None, *, seekable: bool) -> None:
        self.length = length
        """Size in bytes, if known; set when the end is reached."""
        self.seekable = seekable and length is not None
        self.head = b""
        self._furthest = 0
        self._budget = BUDGET

    def begin(self) -> Steps[bytes]:
        """Read the head."""
        self.head = yield from self._fetch(0, HEAD)
        return self.head

    def reachable(self, offset: int, size: int) -> bool:
        """Return whether a read of that range can be answered completely, as far as is known."""
        if offset + size <= len(self.head):
            return True
        if self.seekable:
            return self.length is None or offset + size <= self.length
        start = max(offset, len(self.head))
        return start >= self._furthest and offset + size <= BUDGET

    def read(self, offset: int, size: int) -> Steps[bytes]:
        """Return the bytes there: fewer if the content ends, none if a stream has passed them."""
        known = self.head[offset : offset + size]
        if len(known) == size:
            return known
        start = offset + len(known)
        if not self.seekable and (start < self._furthest or offset + size > BUDGET):
            return known
        rest = yield from self._fetch(start, size - len(known))
        return known + rest

    def _fetch(self, offset: int, size: int) -> Steps[bytes]:
        if self.length is not None:
            size = min(size, self.length - offset)
        if size <= 0:
            return b""
        self._budget -= size
        if self._budget < 0:
            raise ImageUnsafe(f"its structures span more than {BUDGET} bytes")
        self._furthest = max(self._furthest, offset + size)
        data = yield offset, size
        if len(data) < size:
            self.length = offset + len(data)
        return data
