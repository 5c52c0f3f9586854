"""Digest of a disk's content that can be computed in parallel, resumes from 32 bytes, and is independent of framing.

The disk is split into chunks of 1 MiB. The non-zero ranges of each (`cdi.target.buffer.data_runs`) form a leaf::

    leaf  = sha256( for each run: begin and end in the chunk, 4 bytes each, big-endian; then the runs' bytes )

and the leaves of the non-zero chunks are chained in order::

    h     = sha256("cdi-copy-1")
    h     = sha256( h, the chunk's offset in 8 bytes, leaf )
    end   = sha256( h, the disk's size in 8 bytes )

The digest covers which bytes are where, and where there are none. It does not depend on the file's layout, or on how
the content was split, compressed or resumed: every reader of a disk can verify it (`digest_of`). Leaves are independent
of each other, unlike a single sha256 over everything, and the state between two chunks is `h`, which a journal stores.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence

from cdi.target.buffer import aligned_buffer, data_runs

CHUNK = 1 << 20
"""Chunk size in bytes; every offset in the protocol is a multiple of it or the end of the disk."""
SIZE = 32
"""Size of a leaf and of the state in bytes."""
NAME = "cdi-copy-1"
"""Prefix of a formatted digest, in place of an algorithm's name."""

Run = tuple[int, int]
"""Begin and end of a non-zero range in a chunk."""

_RUN = struct.Struct(">II")
_OFFSET = struct.Struct(">Q")


def packed(runs: Iterable[Run]) -> bytes:
    """Return runs as they are hashed and sent."""
    return b"".join(_RUN.pack(start, stop) for start, stop in runs)


def unpacked(table: bytes | memoryview) -> tuple[Run, ...]:
    return tuple((start, stop) for start, stop in _RUN.iter_unpack(table))


RUN_SIZE = _RUN.size


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

    def end(self, size: int) -> bytes:
        return hashlib.sha256(self.state + _OFFSET.pack(size)).digest()


def format_digest(digest: bytes) -> str:
    """Return the digest as an outcome contains it."""
    return f"{NAME}:{digest.hex()}"


def digest_of(read: Callable[[memoryview, int], object], size: int) -> str:
    """Return the digest of a disk of `size` bytes; ``read(view, offset)`` fills the view."""
    chain, buffer = Chain(), aligned_buffer(CHUNK)
    for offset in range(0, size, CHUNK):
        view = buffer[: min(CHUNK, size - offset)]
        read(view, offset)
        if runs := tuple(data_runs(view)):
            chain.add(offset, leaf_hash(runs, (view[start:stop] for start, stop in runs)))
    return format_digest(chain.end(size))
