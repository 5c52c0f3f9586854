"""The decoder of a wrapper."""

from __future__ import annotations

from typing import Literal, assert_never

from cdi.codec.base import Decoder


def decoder(kind: Literal["gz", "xz", "zst"]) -> Decoder:
    """A new decoder; only the library that it needs is imported."""
    # A worker pays for importing one library, not for three.
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
