"""Selection of the decoder for a compression format."""

from __future__ import annotations

from typing import Literal, assert_never

from cdi.codec.base import Decoder


def decoder(kind: Literal["gz", "xz", "zst"]) -> Decoder:
    """Return a new decoder."""
    # Import only the library that is needed, to keep a worker's start short.
    match kind:
        case "gz":
            from cdi.codec.gz import GzDecoder

            return GzDecoder()
        case "xz":
            from cdi.codec.xz import XzDecoder

            return XzDecoder()
        case "zst":
            from cdi.codec.zst import ZstDecoder

            return ZstDecoder()
        case _:
            assert_never(kind)
