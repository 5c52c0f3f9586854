"""Digest of a disk as a clone computes it, from all of its bytes."""

import os

from cdi.source.peer_chunks import CHUNK, Chain, leaf_hash
from cdi.target.buffer import data_runs


def digest_of(read, size):
    """Return the digest of a disk of `size` bytes; ``read(offset, length)`` returns bytes of it."""
    chain = Chain()
    for offset in range(0, size, CHUNK):
        view = memoryview(read(offset, min(CHUNK, size - offset)))
        if runs := tuple(data_runs(view)):
            chain.add(offset, leaf_hash(runs, (view[start:stop] for start, stop in runs)))
    return chain.end(size)


def digest_of_file(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        return digest_of(lambda offset, length: os.pread(descriptor, length, offset), size)
    finally:
        os.close(descriptor)
