"""How a format's inspector reads: it is a generator that yields what it wants and is sent the bytes.

No I/O happens here; `cdi.image.inspect.Inspector` carries the wants to whoever has the content.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeVar

from cdi.api.errors import ImageUnsafe
from cdi.image.info import ImageInfo

HEAD: Final = 64 << 10
"""The first want, bytes: every signature and most headers lie within it."""
BUDGET: Final = 4 << 20
"""The most that is read of one image; of a stream also how far into it the inspection goes."""

Want = tuple[int, int]
_T = TypeVar("_T")
Steps = Generator[Want, bytes, _T]
Inspection = Steps[ImageInfo]


class Content:
    """The content as far as it was read, with what is known about the rest.

    Reads must go forward in a stream: what lies before the furthest byte asked for is gone, except for the head.
    """

    __slots__ = ("_budget", "_furthest", "head", "length", "seekable")

    def __init__(self, length: int | None, *, seekable: bool) -> None:
        self.length = length
        """Bytes, where known; also once the end was met."""
        self.seekable = seekable and length is not None
        self.head = b""
        self._furthest = 0
        self._budget = BUDGET

    def begin(self) -> Steps[bytes]:
        """Read the head."""
        self.head = yield from self._fetch(0, HEAD)
        return self.head

    def reachable(self, offset: int, size: int) -> bool:
        """A read of that range can be answered in full, as far as is known."""
        if offset + size <= len(self.head):
            return True
        if self.seekable:
            return self.length is None or offset + size <= self.length
        start = max(offset, len(self.head))
        return start >= self._furthest and offset + size <= BUDGET

    def read(self, offset: int, size: int) -> Steps[bytes]:
        """The bytes there: fewer where the content ends, none where a stream cannot give them any more."""
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
            raise ImageUnsafe(f"its structures are spread over more than {BUDGET} bytes")
        self._furthest = max(self._furthest, offset + size)
        data = yield offset, size
        if len(data) < size:
            self.length = offset + len(data)
        return data
