"""Content of a cloned volume as its source sends it: chunks with digests, of which only the data is sent.

The volume is split into chunks of 1 MiB. The non-zero ranges of each (`cdi.target.buffer.data_runs`) form a leaf::

    leaf  = sha256( for each run: begin and end in the chunk, 4 bytes each, big-endian; then the runs' bytes )

and the leaves of the non-zero chunks are chained in order::

    h     = sha256("cdi-copy-1")
    h     = sha256( h, the chunk's offset in 8 bytes, leaf )
    end   = sha256( h, the volume's size in 8 bytes )

The digest covers which bytes are where, and where there are none. It does not depend on the file's layout, or on how
the content was split, compressed or resumed: every reader of a disk can verify it. Leaves are independent of each
other, unlike a single sha256 over everything, and the state between two chunks is `h`, which a journal stores.

A response with content consists of chunks in order, each a header, the runs, and the runs' bytes, which may be one zstd
frame. Chunks without data are omitted. A header without runs is a mark: it says that everything before its offset was
sent, so that a target knows of a long range without data, or that its source still waits for something.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cdi.api.errors import PeerProtocolError
from cdi.image.zstd import zstd

CHUNK = 1 << 20
"""Chunk size in bytes; every chunk begins at a multiple of it, and only the last one may be shorter."""
LEAF_SIZE = 32
"""Size of a leaf and of the state in bytes."""
NAME = "cdi-copy-1"
"""Prefix of a formatted digest, in place of an algorithm's name."""

Run = tuple[int, int]
"""Begin and end of a non-zero range in a chunk."""

_RUN = struct.Struct(">II")
_OFFSET = struct.Struct(">Q")
_HEADER = struct.Struct(">QIHB32s")
HEADER_SIZE = _HEADER.size
RUN_SIZE = _RUN.size
_RAW, _ZSTD, _LEAF_ONLY, _MARK = range(4)
_MAX_RUNS = CHUNK // (64 << 10)
"""Maximum number of runs: a gap between two has at least the granularity of the search for zeros."""
_WINDOW_LOG = 21
"""Maximum window: no chunk needs a larger one, and a hostile frame could demand the memory."""


def packed(runs: Iterable[Run]) -> bytes:
    """Return runs as they are hashed and sent."""
    return b"".join(_RUN.pack(start, stop) for start, stop in runs)


def leaf_hash(runs: Sequence[Run], pieces: Iterable[memoryview | bytes]) -> bytes:
    """Return the leaf; `pieces` are the bytes of the runs in order, split anywhere."""
    digest = hashlib.sha256(packed(runs))
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


class Chain:
    """Digest up to some chunk; not thread-safe."""

    def __init__(self, state: bytes | None = None) -> None:
        """Start at the beginning, or resume from the `state` of another chain."""
        self.state = hashlib.sha256(NAME.encode()).digest() if state is None else state

    def add(self, offset: int, leaf: bytes) -> None:
        """Add the next non-zero chunk."""
        self.state = hashlib.sha256(self.state + _OFFSET.pack(offset) + leaf).digest()

    def end(self, size: int) -> str:
        """Return the digest of a volume of `size` bytes as an outcome contains it."""
        return f"{NAME}:{hashlib.sha256(self.state + _OFFSET.pack(size)).hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHeader:
    """Description of one chunk in a response; a mark has only an offset."""

    offset: int
    leaf: bytes = bytes(LEAF_SIZE)
    runs: tuple[Run, ...] = ()
    payload: int = 0
    """Bytes that follow."""
    compressed: bool = False

    @property
    def data(self) -> int:
        """Bytes of all runs together."""
        return sum(stop - start for start, stop in self.runs)

    def encode(self) -> bytes:
        """Return the header with its runs; a header without a payload only states the leaf."""
        kind = _MARK if not self.runs else _LEAF_ONLY if not self.payload else _ZSTD if self.compressed else _RAW
        fixed = _HEADER.pack(self.offset, self.payload, len(self.runs), kind, self.leaf)
        return fixed + packed(self.runs)


def table_size(fixed: bytes | memoryview) -> int:
    """Return the size in bytes of the runs that follow the fixed part of a header; raise `PeerProtocolError`."""
    count = _HEADER.unpack(fixed)[2]
    if count > _MAX_RUNS:
        raise PeerProtocolError(f"invalid chunk with {count} runs")
    return int(count) * RUN_SIZE


def parse_header(data: bytes | memoryview, start: int, stop: int, *, leaves: bool) -> ChunkHeader:
    """Return the header of a chunk.

    Args:
        data: The header and its runs.
        start: Offset in bytes before which no chunk may begin.
        stop: End of the requested range, at which only a mark may be.
        leaves: Whether the response has only leaves.

    Raises:
        PeerProtocolError: The chunk is not within the range, or its runs are not within the chunk.
    """
    offset, payload, count, kind, leaf = _HEADER.unpack(data[:HEADER_SIZE])
    if kind == _MARK:
        if count or payload or not start <= offset <= stop or (offset % CHUNK and offset not in (start, stop)):
            raise PeerProtocolError(f"invalid mark at offset {offset} in the range from {start} to {stop}")
        return ChunkHeader(offset=offset)
    if offset % CHUNK or not start <= offset < stop or not count or kind not in (_RAW, _ZSTD, _LEAF_ONLY):
        raise PeerProtocolError(f"invalid chunk at offset {offset} in the range from {start} to {stop}")
    runs = tuple((begin, end) for begin, end in _RUN.iter_unpack(data[HEADER_SIZE:]))
    position = -1
    for begin, end in runs:
        if not position < begin < end <= min(CHUNK, stop - offset):
            raise PeerProtocolError(f"invalid run from {begin} to {end} in the chunk at offset {offset}")
        position = end
    header = ChunkHeader(offset=offset, leaf=leaf, runs=runs, payload=payload, compressed=kind == _ZSTD)
    known = payload == header.data if kind == _RAW else 0 < payload < header.data if kind == _ZSTD else not payload
    if (kind == _LEAF_ONLY) is not leaves or not known:
        raise PeerProtocolError(f"invalid payload of {payload} bytes in the chunk at offset {offset}")
    return header


def unpack(frame: memoryview, size: int) -> bytes:
    """Return the `size` bytes of exactly one zstd frame, or raise `PeerProtocolError`."""
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
