"""Zstandard frames (RFC 8878), skippable ones included.

A frame's checksum, where it has one, is checked by the library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from cdi.api.errors import DecoderFailed, DecoderLimit
from cdi.codec.base import Buffer, trailing_data
from cdi.codec.feed import Feed
from cdi.codec.members import MemberDecoder, decode_members

WINDOW_LOG = 27
"""The largest window is 2 to this power: 128 MiB, what ``zstd --long`` makes unless told otherwise."""

_SKIPPABLE = b"\x2a\x4d\x18"
"""How skippable frames go on, whose first byte is 0x50 to 0x5f (RFC 8878 section 3.1.2)."""
_MAGIC = b"\x28\xb5\x2f\xfd"
_HEADER_MOST = 14
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_DICTIONARY_BYTES = (0, 1, 2, 4)


class ZstDecoder:
    """Satisfies `cdi.codec.base.Decoder`."""

    def decode(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        return decode_members(Feed(pieces, "zstd stream"), _Frames().start, (zstd.ZstdError,))


class _Frames:
    """The frames of one file: the first one has to be one, a later one may turn out to be data behind the last."""

    def __init__(self) -> None:
        self._first = True

    def start(self, feed: Feed) -> MemberDecoder:
        head = feed.peek(4 + _HEADER_MOST)
        if head[:4] == _MAGIC:
            _check_frame(head[4:])
        elif not self._first and not _begins_frame(head[:4]):
            raise trailing_data(feed.name, head)
        self._first = False
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})


def _begins_frame(head: bytes) -> bool:
    """Whether these bytes, four or those up to the content's end, may begin a frame."""
    return _MAGIC.startswith(head) or (head[0] & 0xF0 == 0x50 and _SKIPPABLE.startswith(head[1:]))


def _check_frame(head: bytes) -> None:
    """Refuse by name what the library would only call an error (RFC 8878 section 3.1.1.1)."""
    if not head:
        return
    descriptor, at = head[0], 1
    single = bool(descriptor & 0x20)
    window: int | None = None
    if not single:
        if len(head) < 2:
            return
        base = 1 << (10 + (head[1] >> 3))
        window, at = base + base // 8 * (head[1] & 7), 2
    dictionary = head[at : at + _DICTIONARY_BYTES[descriptor & 3]]
    if any(dictionary):
        raise DecoderFailed("the zstd stream needs a dictionary that it does not bring")
    if single:
        at += _DICTIONARY_BYTES[descriptor & 3]
        width = _CONTENT_SIZE_BYTES[descriptor >> 6] or 1
        # Such a frame is its own window.
        window = int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)
    if window is not None and window > 1 << WINDOW_LOG:
        raise DecoderLimit(
            f"the zstd stream wants a window of {window} bytes, {1 << WINDOW_LOG} are allowed",
            remedy="compress the image without --ultra and with --long=27 at most",
        )
