"""Decoder for gzip (RFC 1952) with any number of members, based on ISA-L, which checks each member's CRC and length.

The headers are parsed here, because ISA-L 2.31 fails on a header with several optional fields that is split over
several buffers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from isal import igzip_lib

from cdi.api.errors import DecoderFailed
from cdi.codec.base import Buffer, trailing_data
from cdi.codec.concatenated import MemberDecoder, decode_members
from cdi.codec.cursor import BufferCursor

_MAGIC = b"\x1f\x8b\x08"
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 0x02, 0x04, 0x08, 0x10
_RESERVED = 0xE0
_MAX_TEXT = 64 << 10
"""Maximum length of a name or comment in bytes; no limit is specified, and gzip writes at most 255."""

_FAILURES: tuple[type[Exception], ...] = (igzip_lib.IsalError,)  # type: ignore[assignment]  # its stub says instance


class GzDecoder:
    """A `cdi.codec.base.Decoder` for gzip."""

    def decode(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        return decode_members(BufferCursor(pieces, "gzip stream"), _Members().start, _FAILURES)


class _Members:
    """Factory of member decoders, which distinguishes content that is not gzip from data after the last member."""

    def __init__(self) -> None:
        self._first = True

    def start(self, feed: BufferCursor) -> MemberDecoder:
        magic = feed.peek(len(_MAGIC))
        # If the content ends within the magic, it is a truncated member, which the header's parser reports.
        if not _MAGIC.startswith(magic):
            if not self._first:
                raise trailing_data(feed.name, feed.peek(8))
            raise DecoderFailed(f"a gzip member cannot begin with {magic.hex(' ')}")
        self._first = False
        _read_header(feed)
        decoder: MemberDecoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
        return decoder


def _read_header(feed: BufferCursor) -> None:
    """Consume a member's header (RFC 1952 section 2.3); raise `DecoderFailed` or `ContentTruncated`."""
    head = feed.take(10)
    flags = head[3]
    if flags & _RESERVED:
        raise DecoderFailed("the gzip header has unknown flags")
    if flags & _FEXTRA:
        size = feed.take(2)
        head += size + feed.take(int.from_bytes(size, "little"))
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            head += _read_text(feed)
    if flags & _FHCRC and int.from_bytes(feed.take(2), "little") != zlib.crc32(head) & 0xFFFF:
        raise DecoderFailed("the gzip header has a wrong CRC")


def _read_text(feed: BufferCursor) -> bytes:
    text = b""
    while len(text) < _MAX_TEXT:
        part = bytes(feed.window(256))
        end = part.find(b"\0")
        if end >= 0 or not part:
            return text + feed.take(end + 1 or 1)
        text += feed.take(len(part))
    raise DecoderFailed("the gzip header has an unterminated name or comment")
