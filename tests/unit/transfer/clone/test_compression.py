import os

import pytest

from cdi.api.errors import PeerProtocolError
from cdi.source.peer_chunks import unpack
from cdi.transfer.clone.compression import ChunkCompressor

TEXT = b"a line that packs well\n" * 20_000


def packed(*pieces):
    return ChunkCompressor().pack([memoryview(piece) for piece in pieces])


@pytest.mark.parametrize("pieces", [(TEXT,), (TEXT[:5], TEXT[5:70_000], TEXT[70_000:]), (b"x" * 9000, bytes(4096))])
def test_there_and_back(pieces):
    whole = b"".join(pieces)
    frame = packed(*pieces)
    assert len(frame) < len(whole) // 2
    assert unpack(memoryview(frame), len(whole)) == whole


def test_one_packer_packs_many_chunks():
    packer = ChunkCompressor()
    noise = memoryview(os.urandom(1 << 20))
    for _ in range(3):
        frame = packer.pack([memoryview(TEXT)])
        assert unpack(memoryview(frame), len(TEXT)) == TEXT
        assert packer.pack([noise]) is None


@pytest.mark.parametrize(
    "data", [os.urandom(1 << 20), os.urandom(40_000), b"x" * 4096, TEXT[:400] + os.urandom(30_000)]
)
def test_what_does_not_pay_is_left(data):
    assert packed(data) is None


@pytest.mark.parametrize(
    ("damage", "size"),
    [
        (lambda frame: b"", 0),
        (lambda frame: frame[:-1], 0),
        (lambda frame: frame + b"x", 0),
        (lambda frame: frame + frame, 0),
        (lambda frame: b"x" + frame[1:], 0),
        (lambda frame: frame, -1),
        (lambda frame: frame, 1),
        (lambda frame: frame, -len(TEXT) + 1),
    ],
)
def test_anything_but_one_frame_of_that_size_is_refused(damage, size):
    with pytest.raises(PeerProtocolError):
        unpack(memoryview(damage(packed(TEXT))), len(TEXT) + size)


def test_a_window_that_no_chunk_needs_is_refused():
    from backports import zstd

    level = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=level)
    frame = compressor.compress(TEXT) + compressor.flush()
    with pytest.raises(PeerProtocolError):
        unpack(memoryview(frame), len(TEXT))
