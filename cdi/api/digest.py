"""Digests ``algorithm:hex``, as in manifests, registry manifests and lock files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from cdi.api.errors import ChecksumInvalid

HEX_LENGTH = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Digest:
    """Digest with a known algorithm; `hex` is in lower case."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``algorithm:hex`` in any case; raise `ChecksumInvalid` if it is malformed."""
        algorithm, colon, value = text.strip().partition(":")
        algorithm, value = algorithm.lower(), value.lower()
        length = HEX_LENGTH.get(algorithm)
        if not colon or length is None:
            raise ChecksumInvalid(f"checksum {text[:80]!r} names no known algorithm")
        if not re.fullmatch(r"[0-9a-f]+", value) or len(value) != length:
            raise ChecksumInvalid(f"{algorithm} requires {length} hex digits, got {value[:140]!r}")
        return cls(algorithm, value)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
