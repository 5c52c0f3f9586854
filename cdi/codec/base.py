"""Interface of decoders, which turn an iterator of buffers into an iterator of buffers of bounded size.

The consumer drives the chain, so decoding is lazy and memory stays bounded: a decoder holds one input buffer and yields
pieces of at most `MAX_CHUNK` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cdi.api.errors import DecoderFailed

MAX_CHUNK = 1 << 20
"""Maximum size in bytes of a piece that a decoder yields."""

Buffer = bytes | memoryview


def trailing_data(stream: str, head: bytes) -> DecoderFailed:
    """Return the error for data after a compressed stream that is not another such stream."""
    return DecoderFailed(
        f"data follows the end of the {stream}, beginning with {head[:8].hex(' ')}",
        remedy="remove the data appended to the compressed file, or compress the image again",
    )


class Decoder(Protocol):
    """Decoder of one compression format (gz, xz, zst)."""

    def decode(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield the decoded content.

        An input buffer is not accessed after the next one was requested, so that it can be reused.

        Raises:
            DecoderFailed: The stream is damaged.
            ContentTruncated: The stream ends early.
            DecoderLimit: The stream requires more memory than is allowed.
        """
        ...
