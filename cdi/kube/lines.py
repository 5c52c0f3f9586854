"""Lines of any length out of pieces of any size."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from cdi.api.errors import ClusterProtocolError


async def lines(pieces: AsyncIterable[bytes], limit: int, where: str) -> AsyncIterator[bytes]:
    """Each line without its end; empty ones, and one that the end of `pieces` cut, are left out.

    Raises `ClusterProtocolError` for a line of more than `limit` bytes.
    """
    pending: list[bytes] = []  # joined once, or a long line would be copied with every piece of it
    size = 0
    async for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for end in whole:
            pending.append(end)
            if size + len(end) > limit:
                break
            line = b"".join(pending)
            pending, size = [], 0
            if line.strip():
                yield line
        pending.append(rest)
        size += len(rest)
        if size > limit:
            raise ClusterProtocolError(f"a line has more than {limit} bytes", where=where)
