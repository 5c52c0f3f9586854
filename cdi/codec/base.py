"""Decoders: an iterator of buffers goes in, an iterator of buffers comes out, each piece bounded.

Pulling drives the chain, so nothing is decoded that nobody asked for and memory stays bounded: a decoder holds one
input buffer and gives pieces of at most `PIECE` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cdi.api.errors import DecoderFailed

PIECE = 1 << 20
"""The most that a decoder gives at once, bytes."""

Buffer = bytes | memoryview


def trailing_data(stream: str, head: bytes) -> DecoderFailed:
    """Return the error for content behind the end of a compressed stream that begins no other one."""
    return DecoderFailed(
        f"data follows the end of the {stream}, beginning with {head[:8].hex(' ')}",
        remedy="cut off what was appended to the compressed file, or compress the image again, and publish that",
    )


class Decoder(Protocol):
    """One wrapper (gz, xz, zst)."""

    def decode(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        """Raises `DecoderFailed`, `ContentTruncated`, `DecoderLimit`.

        A buffer that went in is not touched after the next one was asked for, so that it can be used again.
        """
        ...
