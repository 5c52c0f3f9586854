"""Reading of small files at once: lists of checksums, signatures, manifests."""

from __future__ import annotations

from cdi.api.errors import SourceRefused
from cdi.source.base import Source


def read_small(source: Source, limit: int) -> bytes:
    """Return the whole content of at most `limit` bytes.

    Raises `SourceRefused` if it is longer, and whatever the source raises.
    """
    facts = source.probe()
    if facts.length is not None and facts.length > limit:
        raise _too_large(facts.length, limit, facts.location)
    # Read one byte more than allowed; otherwise a longer file of unknown length would look complete.
    data = memoryview(bytearray((limit if facts.length is None else facts.length) + 1))
    done = 0
    reader = source.open()
    try:
        while done < len(data) and (count := reader.readinto(data[done:])):
            done += count
    finally:
        reader.close()
    if done > limit:
        raise _too_large(done, limit, facts.location)
    return bytes(data[:done])


def _too_large(length: int, limit: int, where: str) -> SourceRefused:
    return SourceRefused(
        f"the file has {length} bytes or more; the limit is {limit}",
        where=where,
        remedy="check that it is the right file",
    )
