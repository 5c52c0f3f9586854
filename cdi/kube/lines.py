"""Line splitting for streams that arrive in chunks of any size."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from cdi.api.errors import ClusterProtocolError


async def lines(pieces: AsyncIterable[bytes], limit: int, where: str) -> AsyncIterator[bytes]:
    """Yield each line without its end; skip empty lines and an incomplete last line.

    Raises:
        ClusterProtocolError: a line has more than `limit` bytes.
    """
    pending: list[bytes] = []  # joined once: concatenation would copy a long line per chunk
    size = 0
    async for piece in pieces:
        parts = piece.split(b"\n")
        for number, part in enumerate(parts, 1):
            pending.append(part)
            size += len(part)
            if size > limit:
                raise ClusterProtocolError(f"a line exceeds {limit} bytes", where=where)
            if number < len(parts):
                line = b"".join(pending)
                pending, size = [], 0
                if line.strip():
                    yield line
