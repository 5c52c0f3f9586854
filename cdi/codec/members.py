"""What gz and zst have in common: a run of members (frames), each decoded by an object like `bz2.BZ2Decompressor`.

Members follow each other directly.  After the last, zeros are padding (a file that was copied from a device), and
the closing line of a multipart form is passed over: some upload clients send it after the image.  Anything else is
refused: it may be a damaged member, and dropping it would cut the image short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from cdi.api.errors import ContentTruncated, DecoderFailed
from cdi.codec.base import PIECE, Buffer
from cdi.codec.feed import Feed

_MIN_INPUT = 4 << 10
_MAX_INPUT = 256 << 10
_MIN_OUTPUT = 64 << 10
# A decoder copies the input that it has not used yet, and allocates the output that it may give. Both begin small with
# each member and double, or a file of millions of short members would be copied, and memory mapped, over and over.


class MemberDecoder(Protocol):
    """One member under way, in the manner of `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Buffer, /, max_length: int) -> bytes: ...


def decode_members(
    feed: Feed, start: Callable[[Feed], MemberDecoder], failures: tuple[type[Exception], ...]
) -> Iterator[Buffer]:
    """Decode members until the content ends.

    `start` makes the decoder of the next member; it may look ahead, and refuse.  `failures` are what a decoder raises.
    Raises `ContentTruncated` and `DecoderFailed`.
    """
    if not feed.window(1):
        raise ContentTruncated(f"the {feed.name} is empty")
    while True:
        yield from _member(feed, start(feed), failures)
        feed.skip_zeros()
        if not feed.window(1) or feed.skip_form_end():
            return


def _member(feed: Feed, decoder: MemberDecoder, failures: tuple[type[Exception], ...]) -> Iterator[Buffer]:
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
        room = min(2 * room, PIECE)
        if output:
            yield output
        elif not (hungry or decoder.needs_input or decoder.eof):
            raise DecoderFailed(f"the {feed.name} is damaged: its decoder stands still")
    # Input is given only to a decoder that has used all that it had, so this lies within what was taken last.
    feed.back(len(decoder.unused_data))
