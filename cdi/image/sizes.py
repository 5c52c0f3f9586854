"""Sizes: rounding, words for people, and what a disk needs of a volume.  Everything is bytes."""

from __future__ import annotations

from typing import Final

from cdi.api.errors import FormatUnsupported

SECTOR: Final = 512
MEBI: Final = 1 << 20
MAX_DISK: Final = 64 << 40
"""The largest virtual disk that is accepted; also the most that a VHDX can have."""
MAX_OFFSET: Final = (1 << 63) - 1
"""The last byte that the kernel can address in a file."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def round_up(size: int, to: int) -> int:
    """The least multiple of `to` that holds `size`."""
    return -(-size // to) * to


def round_down(size: int, to: int) -> int:
    return size // to * to


def require_size(size: int, what: str, *, where: str | None = None) -> int:
    """Return `size`, a length in bytes that a server, an archive or an image states, if an image can have it.

    `what` is subject and verb of the refusal, "the server announces" for example, and `where` its place.  Raises
    `FormatUnsupported` where it is more than `MAX_DISK`; much larger numbers do not even fit the kernel's offsets.
    """
    if size > MAX_DISK:
        raise FormatUnsupported(
            f"{what} {size} bytes ({human(size)}), and at most {human(MAX_DISK)} are supported",
            where=where,
            remedy="check whether the length is right; a disk image of that size cannot be imported",
        )
    return size


def largest_file(disk: int) -> int:
    """Return the most bytes that the file of an image may have whose disk has `disk` bytes.

    Tables take less than a sixteenth, and so does the compression of what cannot be compressed.  A VHDX adds the most:
    8 MiB in front, and its last block is whole, which has 32 MiB as a rule.  A file that is still larger holds mostly
    what its disk no longer uses, and ``qemu-img convert`` makes it shorter.
    """
    return disk + disk // 16 + 40 * MEBI


def human(size: int) -> str:
    """``10 GiB``, ``1.5 GiB``, ``700 B``: three significant digits, binary units."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 1000 else f"{value:.0f} {_UNITS[unit]}"


def request(size: int) -> str:
    """The shortest Kubernetes quantity that is exactly `size`: ``10Gi``, ``1500Mi``, ``10737418241``."""
    for unit, suffix in ((1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)
