"""A cursor over an iterator of buffers."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.errors import ContentTruncated
from cdi.codec.base import Buffer

_MAX_ZERO_WINDOW = 64 << 10

_NOTHING = memoryview(b"")


class BufferCursor:
    """A cursor over `pieces` that holds only the current buffer.

    `name` is the name of the content in messages.
    """

    def __init__(self, pieces: Iterator[Buffer], name: str) -> None:
        self._pieces = pieces
        self._piece = _NOTHING
        self._at = 0
        self.name = name

    def window(self, most: int) -> memoryview:
        """Return the next bytes without consuming them: between 1 and `most`, or none at the end of the content.

        The view is valid until the next call of any method except `advance` and `unread`.
        """
        while self._at == len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return _NOTHING
            self._piece, self._at = memoryview(piece), 0
        return self._piece[self._at : self._at + most]

    def advance(self, count: int) -> None:
        """Consume `count` bytes of the last window."""
        self._at += count

    def unread(self, count: int) -> None:
        """Put back the last `count` bytes that were consumed from the current window."""
        self._at -= count

    def peek(self, count: int) -> bytes:
        """Return the next `count` bytes without consuming them; fewer if the content ends."""
        head = bytes(self.window(count))
        if not head or len(head) == count:
            return head
        parts = [bytes(self.window(len(self._piece)))]
        size = len(parts[0])
        while size < count:
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(bytes(piece))
            size += len(piece)
        self._piece, self._at = memoryview(b"".join(parts)), 0
        return bytes(self._piece[:count])

    def take(self, count: int) -> bytes:
        """Consume and return exactly `count` bytes; raise `ContentTruncated` if there are fewer."""
        parts = []
        while count:
            part = bytes(self._require(count))
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def views(self, count: int, most: int) -> Iterator[memoryview]:
        """Consume exactly `count` bytes and yield them as views of at most `most` bytes.

        A view is valid until the next one is requested. Raises `ContentTruncated` if there are fewer bytes.
        """
        while count:
            view = self._require(min(count, most))
            self._at += len(view)
            count -= len(view)
            yield view

    def _require(self, most: int) -> memoryview:
        view = self.window(most)
        if not view:
            raise ContentTruncated(f"the {self.name} ends before its end mark")
        return view

    def skip_zeros(self) -> int:
        """Consume zeros and return their number.

        The window starts at one byte and grows with the zeros found: decoders call this after every member, and a file
        may consist of millions of members with no zeros between them.
        """
        skipped, size = 0, 1
        while view := self.window(size):
            kept = len(bytes(view).lstrip(b"\0"))
            skipped += len(view) - kept
            self._at += len(view) - kept
            if kept:
                break
            size = min(8 * size, _MAX_ZERO_WINDOW)
        return skipped
