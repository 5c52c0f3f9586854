"""Properties of all decoders: any chunking gives the same content, and corruption is always reported."""

from __future__ import annotations

import gzip
import lzma
import random
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import ContentTruncated, DecoderFailed, DecoderLimit
from cdi.codec.base import MAX_CHUNK
from cdi.codec.concatenated import decode_members
from cdi.codec.cursor import BufferCursor
from cdi.codec.open import decoder
from cdi.codec.xz import XzDecoder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KINDS = ("gz", "xz", "zst")


def pack(kind: str, content: bytes) -> bytes:
    match kind:
        case "gz":
            return gzip.compress(content, 6)
        case "xz":
            return lzma.compress(content, preset=1)
        case _:
            return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


def reused(packed: bytes, sizes: list[int]) -> Iterator[memoryview]:
    """Yield the pieces in one reused buffer, as the engine does."""
    buffer = bytearray(max(sizes))
    at = turn = 0
    while at < len(packed):
        part = packed[at : at + sizes[turn % len(sizes)]]
        buffer[:] = bytes(len(buffer))
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]
        at += len(part)
        turn += 1


def unpack(kind: str, packed: bytes, sizes: list[int] | None = None) -> bytes:
    out = bytearray()
    for piece in decoder(kind).decode(reused(packed, sizes or [64 << 10])):
        assert 0 < len(piece) <= MAX_CHUNK
        out += piece
    return bytes(out)


def content(size: int, seed: int = 1) -> bytes:
    made = random.Random(seed)
    parts = [made.randbytes(size // 4), b"abc" * (size // 4), bytes(size // 4), made.randbytes(size)]
    return b"".join(parts)[:size]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    members=st.lists(st.binary(max_size=3000), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    padding=st.sampled_from([0, 4, 512]),
)
def test_any_chunking_of_any_members_gives_the_content(kind, members, sizes, padding):
    packed = b"".join(pack(kind, member) for member in members) + bytes(padding)
    assert unpack(kind, packed, sizes) == b"".join(members)


@pytest.mark.parametrize("kind", KINDS)
def test_large_content_comes_in_bounded_pieces(kind):
    original = bytes(5 << 20) + content(3 << 20)
    assert unpack(kind, pack(kind, original)) == original


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_seen(kind):
    packed = pack(kind, content(2000))
    for end in range(len(packed)):
        with pytest.raises(ContentTruncated):
            unpack(kind, packed[:end])


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_member_cut_short_is_seen(kind):
    packed = pack(kind, content(2000))
    for end in (1, 3, 9, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ContentTruncated):
            unpack(kind, packed + packed[:end])


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_never_passes_in_silence(kind):
    original = content(1500)
    packed = pack(kind, original)
    for at in range(len(packed)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(packed)
            damaged[at] ^= flip
            try:
                got = unpack(kind, bytes(damaged))
            except (DecoderFailed, ContentTruncated, DecoderLimit):
                continue
            assert got == original, (at, flip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [b"x", b"\r\n", b"\0\0\0\0x", b"\r\n--d74496d66958873e--\r\n"])
def test_other_bytes_after_the_content_are_refused(kind, tail):
    with pytest.raises(
        DecoderFailed, match="data follows the end of the (gzip|xz|zstd) stream, beginning with"
    ) as caught:
        unpack(kind, pack(kind, b"content") + tail)
    assert "incomplete" not in caught.value.message and "damaged" not in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_all_input_is_consumed(kind):
    pieces = iter([pack(kind, b"content"), bytes(4096), bytes(4096)])
    assert b"".join(decoder(kind).decode(pieces)) == b"content"
    assert next(pieces, None) is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_an_incomplete_stream(kind):
    with pytest.raises(ContentTruncated):
        unpack(kind, b"")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_given_in_pieces_on_demand(kind):
    original = bytes(64 << 20)
    taken = 0

    def pieces():
        nonlocal taken
        packed = pack(kind, original)
        for at in range(0, len(packed), 1024):
            taken += 1
            yield packed[at : at + 1024]

    output = decoder(kind).decode(pieces())
    assert len(next(output)) <= MAX_CHUNK
    assert taken < 20
    output.close()


def test_many_empty_gzip_members_end_soon():
    packed = gzip.compress(b"") * 20000
    assert unpack("gz", packed) == b""


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_short_members_cost_no_more_than_their_own_bytes(kind, monkeypatch):
    """A file may have millions of members: after each one, only a few bytes of the following input are examined."""
    windows = []
    window = BufferCursor.window

    def counting(feed, most):
        view = window(feed, most)
        windows.append(len(view))
        return view

    monkeypatch.setattr(BufferCursor, "window", counting)
    count = 5000
    packed = pack(kind, b"x") * count
    assert unpack(kind, packed, [len(packed)]) == b"x" * count
    assert sum(windows) < count * (8 << 10)


def test_a_decoder_is_asked_for_little_output_at_first():
    """A decoder allocates its output buffer for each member, however short the member is."""
    rooms = []

    class Recording:
        def __init__(self):
            self.eof, self.needs_input, self.unused_data = False, True, b""
            self.left = 8

        def decompress(self, data, /, max_length):
            rooms.append(max_length)
            self.left -= 1
            self.needs_input, self.eof = False, not self.left
            return b"x"

    assert (
        list(decode_members(BufferCursor(iter([b"input"]), "test stream"), lambda _feed: Recording(), ())) == [b"x"] * 8
    )
    assert rooms[0] <= 64 << 10
    assert rooms == sorted(rooms)
    assert rooms[-1] == MAX_CHUNK


@pytest.mark.parametrize("zeros", [0, 1, 7, 8, 9, 100_000, 1 << 20])
@pytest.mark.parametrize("size", [1, 1000, 2 << 20])
def test_zeros_are_counted_to_the_last_one(zeros, size):
    packed = bytes(zeros) + b"x"
    feed = BufferCursor(iter([packed[at : at + size] for at in range(0, len(packed), size)]), "test stream")
    assert feed.skip_zeros() == zeros
    assert feed.take(1) == b"x"


def test_every_part_of_a_gzip_header_is_understood():
    import zlib

    body = zlib.compress(b"content", wbits=-15)
    head = b"\x1f\x8b\x08\x1f" + bytes(6) + b"\x04\x00abcd" + b"name\0" + b"comment\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    end = zlib.crc32(b"content").to_bytes(4, "little") + (7).to_bytes(4, "little")
    assert unpack("gz", head + body + end, [1]) == b"content"
    with pytest.raises(DecoderFailed):
        unpack("gz", head[:-1] + bytes((head[-1] ^ 1,)) + body + end)
    for at in range(8):
        wrong = bytearray(end)
        wrong[at] ^= 1
        with pytest.raises(DecoderFailed):
            unpack("gz", head + body + bytes(wrong))


def test_skippable_zstd_frames_are_skipped():
    skippable = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    packed = skippable + zstd.compress(b"one") + skippable + zstd.compress(b"two") + skippable
    assert unpack("zst", packed, [3]) == b"onetwo"


@pytest.mark.parametrize(("log", "fits"), [(27, True), (28, False), (31, False)])
def test_the_zstd_window_is_limited(log, fits):
    compressor = zstd.ZstdCompressor(
        options={zstd.CompressionParameter.window_log: log, zstd.CompressionParameter.compression_level: 1}
    )
    packed = compressor.compress(b"content") + compressor.flush()
    if fits:
        assert unpack("zst", packed) == b"content"
    else:
        with pytest.raises(DecoderLimit):
            unpack("zst", packed)


def test_a_zstd_dictionary_is_named_as_the_cause():
    dictionary = zstd.ZstdDict(
        zstd.train_dict([f"sample {i} of many {i * 7}".encode() for i in range(3000)], 2000).dict_content
    )
    with pytest.raises(DecoderFailed, match="dictionary"):
        unpack("zst", zstd.compress(b"sample 1 of many 7", zstd_dict=dictionary))


def test_an_xz_dictionary_is_limited():
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 192 << 20, "preset": 0, "mf": lzma.MF_HC3}]
    packed = bytearray(lzma.compress(b"content", filters=filters))
    with pytest.raises(DecoderLimit):
        unpack("xz", bytes(packed))


@pytest.mark.parametrize("check", [lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256])
def test_every_xz_check(check):
    original = content(100_000)
    assert unpack("xz", lzma.compress(original, check=check), [777]) == original


def test_xz_filters_before_lzma2():
    original = content(200_000)
    filters = [{"id": lzma.FILTER_DELTA, "dist": 4}, {"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1}]
    assert unpack("xz", lzma.compress(original, filters=filters)) == original


def test_a_caller_that_stops_leaves_no_thread():
    import threading

    packed = lzma.compress(content(3 << 20), preset=0)
    output = XzDecoder(threads=2).decode(iter([packed]))
    next(output)
    output.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "xz"]
