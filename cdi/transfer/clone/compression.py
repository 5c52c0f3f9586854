"""Compression of chunks on the wire, where it saves bytes; `cdi.source.peer_chunks.unpack` is its inverse."""

from __future__ import annotations

from collections.abc import Sequence

from cdi.image.zstd import zstd

_LEVEL = 1
_SAMPLE = 16 << 10
"""Bytes from the middle of a chunk; if they do not shrink, the chunk is not compressed."""
_MIN_COMPRESSED = 4 << 10
"""Size in bytes up to which compression is not attempted."""


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
