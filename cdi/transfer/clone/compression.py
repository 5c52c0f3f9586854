"""Compression of chunks on the wire, where it saves bytes."""

from __future__ import annotations

from collections.abc import Sequence

from cdi.api.errors import PeerProtocolError
from cdi.image.zstd import zstd

_LEVEL = 1
_SAMPLE = 16 << 10
"""Bytes from the middle of a chunk; if they do not shrink, the chunk is not compressed."""
_MIN_COMPRESSED = 4 << 10
"""Size in bytes up to which compression is not attempted."""
_WINDOW_LOG = 21
"""Maximum window: no chunk needs a larger one, and a hostile frame could demand the memory."""


class ChunkCompressor:
    """Compressor for one thread."""

    def __init__(self) -> None:
        self._zstd = zstd.ZstdCompressor(level=_LEVEL)

    def pack(self, pieces: Sequence[memoryview]) -> bytes | None:
        """Return one frame of all pieces, or None if that saves less than an eighth."""
        size = sum(map(len, pieces))
        if size <= _MIN_COMPRESSED:
            return None
        longest = max(pieces, key=len)
        if len(longest) > 2 * _SAMPLE:
            middle = len(longest) // 2
            sample = longest[middle : middle + _SAMPLE]
            if len(self._zstd.compress(sample, zstd.ZstdCompressor.FLUSH_FRAME)) > len(sample) * 7 // 8:
                return None
        frame = b"".join(
            (*(self._zstd.compress(piece, zstd.ZstdCompressor.CONTINUE) for piece in pieces), self._zstd.flush())
        )
        return frame if len(frame) <= size * 7 // 8 else None


def unpack(frame: memoryview, size: int) -> bytes:
    """Return the `size` bytes of exactly one frame, or raise `PeerProtocolError`."""
    reader = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        plain = reader.decompress(frame, size)
        if not reader.eof and len(plain) == size:
            # The frame's end marker may still be unread.
            plain += reader.decompress(b"", 1)
    except zstd.ZstdError as error:
        raise PeerProtocolError(f"cannot decompress a chunk: {error}") from error
    if len(plain) != size or not reader.eof or reader.unused_data:
        raise PeerProtocolError(f"size mismatch: a chunk does not decompress to {size} bytes")
    return plain
