"""Decoding of concatenated members (gz) or frames (zst), each by an object like `bz2.BZ2Decompressor`.

Members follow each other directly. After the last one, zeros are accepted as padding of a file copied from a device.
Anything else is rejected: it may be a damaged member, and ignoring it would truncate the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from cdi.api.errors import ContentTruncated, DecoderFailed
from cdi.codec.base import MAX_CHUNK, Buffer
from cdi.codec.cursor import BufferCursor

_MIN_INPUT = 4 << 10
_MAX_INPUT = 256 << 10
_MIN_OUTPUT = 64 << 10
# A decoder copies the input that it has not used yet, and allocates its maximum output. Both start small with each
# member and double. Otherwise a file of millions of short members would cause a large copy and allocation for each.


class MemberDecoder(Protocol):
    """Decoder of one member, with the interface of `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Buffer, /, max_length: int) -> bytes: ...


def decode_members(
    feed: BufferCursor, start: Callable[[BufferCursor], MemberDecoder], failures: tuple[type[Exception], ...]
) -> Iterator[Buffer]:
    """Decode members until the content ends.

    Args:
        feed: The content.
        start: Returns the decoder for the next member; it may peek into the feed, and raise.
        failures: The exceptions that a decoder raises for damaged input.

    Raises:
        ContentTruncated: The content is empty or ends early.
        DecoderFailed: The content is damaged.
    """
    if not feed.window(1):
        raise ContentTruncated(f"the {feed.name} is empty")
    while True:
        yield from _member(feed, start(feed), failures)
        feed.skip_zeros()
        if not feed.window(1):
            return


def _member(feed: BufferCursor, decoder: MemberDecoder, failures: tuple[type[Exception], ...]) -> Iterator[Buffer]:
    step, room = _MIN_INPUT, _MIN_OUTPUT
    while not decoder.eof:
        hungry = decoder.needs_input
        taken: Buffer = b""
        if hungry:
            taken = feed.window(step)
            if not taken:
                raise ContentTruncated(f"the {feed.name} ends before its end mark")
            feed.advance(len(taken))
            step = min(2 * step, _MAX_INPUT)
        try:
            output = decoder.decompress(taken, room)
        except failures as error:
            raise DecoderFailed(f"the {feed.name} is damaged: {error}") from error
        room = min(2 * room, MAX_CHUNK)
        if output:
            yield output
        elif not (hungry or decoder.needs_input or decoder.eof):
            raise DecoderFailed(f"the {feed.name} is damaged: its decoder makes no progress")
    # A decoder gets input only after it has used up all earlier input, so unused data is from the current window.
    feed.unread(len(decoder.unused_data))
