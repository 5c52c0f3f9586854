"""Decoder for Zstandard frames (RFC 8878), including skippable ones.

The library verifies a frame's checksum if it has one.
"""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.errors import DecoderFailed, DecoderLimit
from cdi.codec.base import Buffer, trailing_data
from cdi.codec.concatenated import MemberDecoder, decode_members
from cdi.codec.cursor import BufferCursor
from cdi.image.zstd import zstd

WINDOW_LOG = 27
"""Binary logarithm of the maximum window size: 128 MiB, the default of ``zstd --long``."""

_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 2 to 4 of a skippable frame, whose first byte is 0x50 to 0x5f (RFC 8878 section 3.1.2)."""
_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_HEADER = 14
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_DICTIONARY_BYTES = (0, 1, 2, 4)


class ZstDecoder:
    """A `cdi.codec.base.Decoder` for Zstandard."""

    def decode(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        return decode_members(BufferCursor(pieces, "zstd stream"), _Frames().start, (zstd.ZstdError,))


class _Frames:
    """Factory of frame decoders, which distinguishes content that is not Zstandard from data after the last frame."""

    def __init__(self) -> None:
        self._first = True

    def start(self, feed: BufferCursor) -> MemberDecoder:
        head = feed.peek(4 + _MAX_HEADER)
        if head[:4] == _MAGIC:
            _check_frame(head[4:])
        elif not self._first and not _begins_frame(head[:4]):
            raise trailing_data(feed.name, head)
        self._first = False
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})


def _begins_frame(head: bytes) -> bool:
    """Return whether a frame may begin with these bytes, which are four, or fewer if the content ends."""
    return _MAGIC.startswith(head) or (head[0] & 0xF0 == 0x50 and _SKIPPABLE.startswith(head[1:]))


def _check_frame(head: bytes) -> None:
    """Raise a specific error for frames that the library only rejects as invalid (RFC 8878 section 3.1.1.1)."""
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
        raise DecoderFailed("the zstd stream requires an external dictionary")
    if single:
        at += _DICTIONARY_BYTES[descriptor & 3]
        width = _CONTENT_SIZE_BYTES[descriptor >> 6] or 1
        # The window of a single-segment frame is its whole content.
        window = int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)
    if window is not None and window > 1 << WINDOW_LOG:
        raise DecoderLimit(
            f"the zstd stream requires a window of {window} bytes; the limit is {1 << WINDOW_LOG}",
            remedy="compress the image without --ultra and with --long=27 at most",
        )
