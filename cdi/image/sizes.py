"""Sizes in bytes: rounding, formatting and limits."""

from __future__ import annotations

from typing import Final

from cdi.api.errors import FormatUnsupported

SECTOR: Final = 512
MEBI: Final = 1 << 20
MAX_DISK: Final = 64 << 40
"""Maximum virtual size; also the maximum of the VHDX format."""
MAX_OFFSET: Final = (1 << 63) - 1
"""Largest offset that the kernel supports in a file."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def round_up(size: int, to: int) -> int:
    """Return the smallest multiple of `to` that is at least `size`."""
    return -(-size // to) * to


def require_size(size: int, what: str, *, where: str | None = None) -> int:
    """Return `size`, a length in bytes that a server, an archive or an image states, if an image can have it.

    `what` is subject and verb of the message, "the server announces" for example, and `where` its location. Much larger
    numbers would not even fit the kernel's offsets.

    Raises:
        FormatUnsupported: the size exceeds `MAX_DISK`.
    """
    if size > MAX_DISK:
        raise FormatUnsupported(
            f"{what} {size} bytes ({format_size(size)}), and at most {format_size(MAX_DISK)} are supported",
            where=where,
            remedy="check whether the length is right; a disk image of that size cannot be imported",
        )
    return size


def largest_file(disk: int) -> int:
    """Return the maximum size in bytes of the file of an image whose disk has `disk` bytes.

    Tables take less than a sixteenth, and so does the overhead of compressing incompressible data. A VHDX adds the
    most: 8 MiB in front, and a complete last block, usually of 32 MiB. A file that is still larger holds mostly data
    that its disk no longer uses, and ``qemu-img convert`` makes it shorter.
    """
    return disk + disk // 16 + 40 * MEBI


def format_size(size: int) -> str:
    """Format a size with three significant digits and a binary unit: ``10 GiB``, ``1.5 GiB``, ``700 B``."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 1000 else f"{value:.0f} {_UNITS[unit]}"


def kubernetes_quantity(size: int) -> str:
    """Return the shortest Kubernetes quantity that equals `size`: ``10Gi``, ``1500Mi``, ``10737418241``."""
    for unit, suffix in ((1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)
