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
        parts = piece.split(b"\n")
        for number, part in enumerate(parts, 1):
            pending.append(part)
            size += len(part)
            if size > limit:
                raise ClusterProtocolError(f"a line has more than {limit} bytes", where=where)
            if number < len(parts):
                line = b"".join(pending)
                pending, size = [], 0
                if line.strip():
                    yield line
