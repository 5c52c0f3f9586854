"""Compression on the wire, where it pays."""

from __future__ import annotations

import sys
from collections.abc import Sequence

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from cdi.api.errors import PeerProtocolError

_LEVEL = 1
_SAMPLE = 16 << 10
"""Of the middle of a chunk, bytes: what does not shrink there is not tried further."""
_SMALL = 4 << 10
"""Less is not worth a thought, bytes."""
_WINDOW_LOG = 21
"""No chunk needs a larger window; another frame would have it given."""


class Packer:
    """One a thread."""

    def __init__(self) -> None:
        self._zstd = zstd.ZstdCompressor(level=_LEVEL)

    def pack(self, pieces: Sequence[memoryview]) -> bytes | None:
        """One frame of all pieces; None where an eighth at least is not saved."""
        size = sum(map(len, pieces))
        if size <= _SMALL:
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
    """The `size` bytes of one frame, and nothing more; raises `PeerProtocolError`."""
    reader = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        plain = reader.decompress(frame, size)
        if not reader.eof and len(plain) == size:
            # The end of the frame may still have to be read.
            plain += reader.decompress(b"", 1)
    except zstd.ZstdError as error:
        raise PeerProtocolError(f"a chunk cannot be decompressed: {error}") from error
    if len(plain) != size or not reader.eof or reader.unused_data:
        raise PeerProtocolError(f"a chunk of {size} bytes decompresses to another length")
    return plain
