"""Tests of xz streams of many blocks, with and without sizes in their headers, against the standard library."""

from __future__ import annotations

import lzma
import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import ContentTruncated, DecoderFailed, DecoderLimit
from cdi.codec.xz import XzDecoder
from cdi.codec.xz_format import format_number, parse_block_header, parse_number, stream_end

CHECKS = {lzma.CHECK_NONE: 0, lzma.CHECK_CRC32: 4, lzma.CHECK_CRC64: 8, lzma.CHECK_SHA256: 32}


def block(content: bytes, sized: bool, check: int) -> tuple[bytes, int]:
    """Return a block without its stream, and its unpadded size in bytes."""
    packed = lzma.compress(content, check=check, preset=0)
    size = (packed[12] + 1) * 4
    header = packed[12 : 12 + size]
    index_size = (int.from_bytes(packed[-8:-4], "little") + 1) * 4
    index = packed[-12 - index_size : -12]
    unpadded, _ = parse_number(index, 2, len(index))
    body = packed[12 + size : -12 - index_size]
    if not sized:
        return header + body, unpadded
    compressed = unpadded - size - CHECKS[check]
    fields = bytes((0, 0xC0)) + format_number(compressed) + format_number(len(content)) + b"\x21\x01" + header[4:5]
    fields += bytes(-len(fields) % 4)
    fields = bytes((len(fields) // 4,)) + fields[1:]
    header = fields + struct.pack("<I", zlib.crc32(fields))
    return header + body, len(header) + compressed + CHECKS[check]


def stream(blocks: list[tuple[bytes, bool]], check: int = lzma.CHECK_CRC32) -> bytes:
    head = lzma.compress(b"", check=check)[:12]
    made = [block(content, sized, check) for content, sized in blocks]
    index = b"\0" + format_number(len(made))
    for (content, _), (_, unpadded) in zip(blocks, made, strict=True):
        index += format_number(unpadded) + format_number(len(content))
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    body = struct.pack("<I", len(index) // 4 - 1) + head[6:8]
    return head + b"".join(raw for raw, _ in made) + index + struct.pack("<I", zlib.crc32(body)) + body + b"YZ"


def unpack(packed: bytes, step: int = 1 << 16, threads: int = 2, in_flight: int = 96 << 20) -> bytes:
    pieces = (packed[at : at + step] for at in range(0, len(packed), step))
    return b"".join(XzDecoder(threads, in_flight).decode(pieces))


contents = st.binary(min_size=1, max_size=2000)


@settings(max_examples=30, deadline=None)
@given(
    streams=st.lists(st.lists(st.tuples(contents, st.booleans()), max_size=6), min_size=1, max_size=3),
    check=st.sampled_from(sorted(CHECKS)),
    step=st.integers(1, 3000),
    threads=st.integers(1, 3),
    in_flight=st.sampled_from([1000, 140_000, 300_000, 96 << 20]),
)
def test_any_blocks_in_any_streams_are_as_liblzma_decodes_them(streams, check, step, threads, in_flight):
    parts = [stream(blocks, check) for blocks in streams]
    # The standard library takes padding between streams for the end of the input.
    expected = b"".join(lzma.decompress(part) for part in parts)
    assert expected == b"".join(content for blocks in streams for content, _ in blocks)
    assert unpack(bytes(8).join(parts), step, threads, in_flight) == expected


def test_many_blocks_are_decoded_side_by_side_in_order():
    made = random.Random(3)
    blocks = [(made.randbytes(50_000) + bytes(made.randrange(200_000)), True) for _ in range(40)]
    packed = stream(blocks)
    assert unpack(packed) == b"".join(content for content, _ in blocks)


def test_a_changed_byte_never_passes_in_silence():
    blocks = [(b"first block " * 30, True), (b"second block " * 30, False), (b"third block " * 30, True)]
    packed = stream(blocks)
    original = b"".join(content for content, _ in blocks)
    assert unpack(packed) == original
    for at in range(len(packed)):
        for flip in (1, 0xC0):
            damaged = bytearray(packed)
            damaged[at] ^= flip
            with pytest.raises((DecoderFailed, ContentTruncated, DecoderLimit)):
                unpack(bytes(damaged))


def test_every_truncation_is_seen():
    packed = stream([(b"first block " * 30, True), (b"second block " * 30, False), (b"third block " * 30, True)])
    for end in range(len(packed)):
        with pytest.raises(ContentTruncated):
            unpack(packed[:end])


def test_blocks_before_the_damage_are_given():
    blocks = [(bytes([n]) * 100_000, True) for n in range(8)]
    packed = bytearray(stream(blocks))
    packed[-60] ^= 1
    got = bytearray()
    with pytest.raises(DecoderFailed):
        for piece in XzDecoder(2).decode(iter([bytes(packed)])):
            got += piece
    assert bytes(got[:100_000]) == bytes(100_000)


def test_an_index_that_does_not_belong_to_the_blocks_is_refused():
    one, two = stream([(b"x" * 5000, True)] * 2), stream([(b"x" * 5000, True)] * 3)
    index_one = (int.from_bytes(one[-8:-4], "little") + 1) * 4
    index_two = (int.from_bytes(two[-8:-4], "little") + 1) * 4
    with pytest.raises(DecoderFailed):
        unpack(one[: -12 - index_one] + two[-12 - index_two :])


def test_an_index_of_other_sizes_is_refused():
    one, two = stream([(b"x" * 5000, True), (b"y" * 300, True)]), stream([(b"y" * 300, True), (b"x" * 5000, True)])
    index = (int.from_bytes(one[-8:-4], "little") + 1) * 4 + 12
    with pytest.raises(DecoderFailed, match="index does not match"):
        unpack(one[:-index] + two[-index:])


def test_memory_in_flight_is_bounded():
    blocks = [(bytes(1 << 20), True)] * 40
    packed = stream(blocks)
    limit = 6 << 20
    taken = 0

    def pieces():
        nonlocal taken
        for at in range(0, len(packed), 64):
            taken = at
            yield packed[at : at + 64]

    output = XzDecoder(2, limit).decode(pieces())
    next(output)
    assert taken < len(packed) / 5
    output.close()


def test_a_block_that_lies_about_its_size_is_refused():
    packed = bytearray(stream([(b"content " * 100, True)]))
    header = bytes(packed[12 : 12 + (packed[12] + 1) * 4])
    parsed = parse_block_header(header)
    assert parsed.uncompressed == 800
    wrong = header.replace(format_number(800), format_number(801))[:-4]
    packed[12 : 12 + len(header)] = wrong + struct.pack("<I", zlib.crc32(wrong))
    with pytest.raises(DecoderFailed):
        unpack(bytes(packed))


def test_a_block_header_of_huge_sizes_asks_for_no_memory():
    fields = bytes((0, 0xC0)) + format_number(1 << 60) + format_number(1 << 60) + b"\x21\x01\x00"
    fields += bytes(-len(fields) % 4)
    fields = bytes((len(fields) // 4,)) + fields[1:]
    packed = lzma.compress(b"")[:12] + fields + struct.pack("<I", zlib.crc32(fields)) + bytes(100)
    with pytest.raises((DecoderFailed, ContentTruncated)):
        unpack(packed)


def test_the_made_stream_end_is_what_liblzma_expects():
    packed = lzma.compress(b"content", check=lzma.CHECK_CRC32)
    from cdi.codec.xz_format import parse_stream_header

    index_size = (int.from_bytes(packed[-8:-4], "little") + 1) * 4
    unpadded, _ = parse_number(packed[-12 - index_size :], 2, index_size)
    assert stream_end(parse_stream_header(packed[:12]), unpadded, 7) == packed[-12 - index_size :]


@pytest.mark.parametrize("raw", [b"\x80\x00", b"\xff" * 10, b"\x80", b""])
def test_malformed_numbers(raw):
    with pytest.raises(DecoderFailed):
        parse_number(raw, 0, len(raw))


@given(st.integers(0, (1 << 63) - 1))
def test_numbers_are_read_as_written(value):
    raw = format_number(value)
    assert parse_number(raw, 0, len(raw)) == (value, len(raw))
