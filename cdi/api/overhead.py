"""Conversion between the sizes of volumes and of disks in their file systems.

A file system reserves some space for its metadata. CDI expects it to need the fraction `overhead` of the disk's size:

    required = ceil(roundUp(size, 1Mi) * (1 + overhead))
    usable   = roundDown(ceil(available / (1 + overhead)), 1Mi)

All arithmetic is exact, so ``usable(required(size)) >= size`` for every size and overhead. Sizes are bytes.
"""

from __future__ import annotations

import re
from fractions import Fraction

from cdi.api.errors import InvalidManifest
from cdi.api.quantity import MIB

DEFAULT_OVERHEAD = Fraction(6, 100)
NO_OVERHEAD = Fraction(0)
"""Overhead of a block volume."""


def parse_overhead(text: str) -> Fraction:
    """Parse an overhead from 0 to 1 with at most three decimals; raise `InvalidManifest` if it is invalid.

    With an overhead of 1 a volume is twice as large as its disk. The form is that of KubeVirt's CDI: ``1.0`` has none.
    """
    if not re.fullmatch(r"0(\.[0-9]{1,3})?|1", text):
        raise InvalidManifest(f"{text[:40]!r} is not a file system overhead: 0, 0.001 to 0.999, or 1")
    return Fraction(text)


def round_up(size: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `size`."""
    return -(-size // unit) * unit


def round_down(size: int, unit: int) -> int:
    """Return the largest multiple of `unit` that is not above `size`."""
    return size // unit * unit


def required(size: int, overhead: Fraction = DEFAULT_OVERHEAD) -> int:
    """Return the size in bytes that a volume needs for a disk of `size` bytes."""
    return _ceil(round_up(size, MIB) * (1 + overhead))


def usable(available: int, overhead: Fraction = DEFAULT_OVERHEAD) -> int:
    """Return the size in bytes of the largest disk for a volume of `available` bytes."""
    return round_down(_ceil(available / (1 + overhead)), MIB)


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
