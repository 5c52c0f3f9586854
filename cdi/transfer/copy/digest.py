"""The digest of a disk's content: computed by several threads, continued from 32 bytes, the same however it was sent.

The disk is cut into chunks of 1 MiB.  Of each, what is not zero (`cdi.target.buffer.data_runs`) makes a leaf::

    leaf  = sha256( for each run: begin and end in the chunk, 4 bytes each, big-endian; then the runs' bytes )

and the leaves of the chunks that are not zero are chained in their order::

    h     = sha256("cdi-copy-1")
    h     = sha256( h, the chunk's offset in 8 bytes, leaf )
    end   = sha256( h, the disk's size in 8 bytes )

So it says which bytes are where, and where nothing is, and depends neither on how the file is laid out nor on how it
was cut, compressed or resumed: whoever can read a disk can check it (`digest_of`).  Leaves are independent of each
other, which one sha256 over everything would not be, and the state between two chunks is `h`, which a journal holds.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence

from cdi.target.buffer import aligned_buffer, data_runs

CHUNK = 1 << 20
"""Bytes; every offset in the protocol is a multiple of it, and the disk's end."""
SIZE = 32
"""Of a leaf and of the state, bytes."""
NAME = "cdi-copy-1"
"""Before the colon of a written digest, where another would have the name of its algorithm."""

Run = tuple[int, int]
"""Begin and end of bytes in a chunk."""

_RUN = struct.Struct(">II")
_OFFSET = struct.Struct(">Q")


def packed(runs: Iterable[Run]) -> bytes:
    """As they are hashed, and sent."""
    return b"".join(_RUN.pack(start, stop) for start, stop in runs)


def unpacked(table: bytes | memoryview) -> tuple[Run, ...]:
    return tuple((start, stop) for start, stop in _RUN.iter_unpack(table))


RUN_SIZE = _RUN.size


def leaf_of(runs: Sequence[Run], pieces: Iterable[memoryview | bytes]) -> bytes:
    """`pieces` are the bytes of the runs, one after the other, cut anyhow."""
    digest = hashlib.sha256(packed(runs))
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


class Chain:
    """The digest up to some chunk.  Not for several threads at once."""

    def __init__(self, state: bytes | None = None) -> None:
        """From the beginning, or from the `state` of another."""
        self.state = hashlib.sha256(NAME.encode()).digest() if state is None else state

    def add(self, offset: int, leaf: bytes) -> None:
        """The next chunk that is not zero."""
        self.state = hashlib.sha256(self.state + _OFFSET.pack(offset) + leaf).digest()

    def end(self, size: int) -> bytes:
        return hashlib.sha256(self.state + _OFFSET.pack(size)).digest()


def written(digest: bytes) -> str:
    """For an outcome."""
    return f"{NAME}:{digest.hex()}"


def digest_of(read: Callable[[memoryview, int], object], size: int) -> str:
    """Of the `size` bytes of a disk; ``read(view, offset)`` fills the view."""
    chain, buffer = Chain(), aligned_buffer(CHUNK)
    for offset in range(0, size, CHUNK):
        view = buffer[: min(CHUNK, size - offset)]
        read(view, offset)
        if runs := tuple(data_runs(view)):
            chain.add(offset, leaf_of(runs, (view[start:stop] for start, stop in runs)))
    return written(chain.end(size))
