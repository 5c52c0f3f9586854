"""The decoder of a wrapper."""

from __future__ import annotations

from typing import Literal, assert_never

from cdi.codec.base import Decoder


def decoder(kind: Literal["gz", "xz", "zst"]) -> Decoder:
    """A new decoder; only the library that it needs is imported."""
    match kind:
        case "gz":
            from cdi.codec.gz import GzDecoder  # noqa: PLC0415 - a worker pays for one library, not for three

            return GzDecoder()
        case "xz":
            from cdi.codec.xz import XzDecoder  # noqa: PLC0415 - as above

            return XzDecoder()
        case "zst":
            from cdi.codec.zst import ZstDecoder  # noqa: PLC0415 - as above

            return ZstDecoder()
        case _:
            assert_never(kind)
