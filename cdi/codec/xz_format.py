"""Headers, index and footer of the .xz file format (version 1.2.1, tukaani.org), as needed to decode single blocks."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from cdi.api.errors import DecoderFailed, DecoderLimit

STREAM_MAGIC = b"\xfd7zXZ\0"
FOOTER_MAGIC = b"YZ"
HEADER_SIZE = 12
"""Size in bytes of a stream's header, and of its footer."""
MAX_DICTIONARY = 128 << 20
"""Maximum size of the dictionary in bytes; ``xz -9`` uses 64 MiB."""

_CHECK_SIZES = (0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64)
_LZMA2 = 0x21


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHeader:
    raw: bytes
    check_size: int
    """Size in bytes of the check after each block."""

    @property
    def flags(self) -> bytes:
        return self.raw[6:8]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHeader:
    raw: bytes
    compressed: int | None
    """Size in bytes of the compressed data, without padding and check; None if the header does not state it."""
    uncompressed: int | None
    """Size in bytes of the content; None if the header does not state it."""
    dictionary: int
    """Size of the dictionary in bytes."""


def damaged(what: str) -> DecoderFailed:
    return DecoderFailed(f"the xz stream is damaged: {what}")


def parse_stream_header(raw: bytes) -> StreamHeader:
    """Parse a stream header (section 2.1.1); raise `DecoderFailed` if it is invalid."""
    if raw[:6] != STREAM_MAGIC:
        raise damaged(f"a stream cannot begin with {raw[:6].hex(' ')}")
    if zlib.crc32(raw[6:8]) != int.from_bytes(raw[8:12], "little"):
        raise damaged("the stream header has a wrong CRC")
    if raw[6] or raw[7] & 0xF0:
        raise damaged("the stream header has unknown flags")
    return StreamHeader(raw=raw, check_size=_CHECK_SIZES[raw[7]])


def parse_block_header(raw: bytes) -> BlockHeader:
    """Parse a block header (section 3.1).

    Raises:
        DecoderFailed: The header is invalid.
        DecoderLimit: The dictionary exceeds `MAX_DICTIONARY`.
    """
    if zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise damaged("a block header has a wrong CRC")
    flags, at, end = raw[1], 2, len(raw) - 4
    if flags & 0x3C:
        raise damaged("a block header has unknown flags")
    compressed = uncompressed = None
    if flags & 0x40:
        compressed, at = parse_number(raw, at, end)
        if not compressed:
            raise damaged("a block has no data")
    if flags & 0x80:
        uncompressed, at = parse_number(raw, at, end)
    last, properties = -1, b""
    for _ in range((flags & 3) + 1):
        last, at = parse_number(raw, at, end)
        size, at = parse_number(raw, at, end)
        if size > end - at:
            raise damaged("the properties of a filter exceed the block header")
        properties, at = raw[at : at + size], at + size
    if any(raw[at:end]):
        raise damaged("a block header has unknown content")
    # Only LZMA2 can be the last filter of a chain; the others transform its output (section 5.3).
    if last != _LZMA2 or len(properties) != 1 or properties[0] > 40:
        raise damaged("a block is not compressed with LZMA2")
    return BlockHeader(
        raw=raw, compressed=compressed, uncompressed=uncompressed, dictionary=_dictionary_size(properties[0])
    )


def _dictionary_size(code: int) -> int:
    """Decode the dictionary size in bytes (section 5.3.1); raise `DecoderLimit` if it exceeds `MAX_DICTIONARY`."""
    size = 0xFFFFFFFF if code == 40 else (2 | code & 1) << (code // 2 + 11)
    if size > MAX_DICTIONARY:
        raise DecoderLimit(
            f"the xz stream requires a dictionary of {size} bytes; the limit is {MAX_DICTIONARY}",
            remedy="compress the image with xz -9 or less",
        )
    return size


def parse_number(raw: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a variable-length integer (section 1.2) and the position after it; raise `DecoderFailed` if malformed."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= end:
            break
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte and shift:
                break
            return value, at
    raise damaged("a number is malformed")


def format_number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def parse_footer(raw: bytes, header: StreamHeader) -> int:
    """Return the size in bytes of the index before the footer (section 2.1.2); raise `DecoderFailed` if invalid."""
    if raw[10:] != FOOTER_MAGIC or zlib.crc32(raw[4:10]) != int.from_bytes(raw[:4], "little"):
        raise damaged("the stream footer is invalid")
    if raw[8:10] != header.flags:
        raise damaged("the stream footer does not match its header")
    return (int.from_bytes(raw[4:8], "little") + 1) * 4


def stream_end(header: StreamHeader, unpadded: int, uncompressed: int) -> bytes:
    """Return index and footer of a stream with a single block, with which liblzma can verify the block's sizes."""
    index = b"\0\x01" + format_number(unpadded) + format_number(uncompressed)
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    body = struct.pack("<I", len(index) // 4 - 1) + header.flags
    return index + struct.pack("<I", zlib.crc32(body)) + body + FOOTER_MAGIC
