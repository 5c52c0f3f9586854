"""Fuzz target: no block allocation table of a VDI, VHD or VHDX causes writes outside the disk, and both readers agree.

An input is a byte of choices, one of the number of blocks, two of the file's length, and five for each entry.

    python tests/fuzz/fuzz_bat_map.py -max_total_time=60
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

# Instruments the readers, so it is imported before them.
from tests.fuzz.fuzz_qcow2_map import compare  # isort: skip

from cdi.api.errors import CdiError
from cdi.image.bat_map import bat_map_builder
from cdi.image.block_map import MapBuilder
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector
from tests.bat_writer import BatImage
from tests.fuzz.seeds import run

FORMATS = ("vdi", "vpc", "vhdx", "vpc")
SECTOR = 512


def file_of(data: bytes) -> bytes:
    """Return a file with valid headers, so that the fuzzer mutates the table and the file's length."""
    name = FORMATS[data[0] & 3]
    block = 1 << 20 if name != "vpc" else 4096 << (data[0] >> 2 & 1)
    count = 1 + data[1] % (3 if name != "vpc" else 12)
    image = BatImage(name, count * block - SECTOR * (data[0] >> 3 & 3), block, {}, {})
    for number in range(min(count, (len(data) - 4) // 5)):
        kind, value = data[4 + 5 * number], int.from_bytes(data[5 + 5 * number : 9 + 5 * number], "little")
        if kind & 3 == 3:
            image.entries[number] = value
        elif kind & 3:
            image.places[number] = value % 6
            image.blocks[number] = bytes((kind, number, value & 255)) * (block // 3)
            image.bitmaps[number] = bytes((value >> 8 & 255 | -(kind & 4) & 255,)) * image.bitmap_size
    content = image.content()
    return content[: len(content) - SECTOR * int.from_bytes(data[2:4], "big") // 8]


def target(data: bytes) -> None:
    if len(data) < 5:
        return
    file = file_of(data)
    inspector = Inspector(len(file))
    while (wanted := inspector.next_range()) is not None:
        inspector.feed(wanted[0], file[wanted[0] : wanted[0] + wanted[1]])
    try:
        image = inspector.result()
    except CdiError:
        return
    if bat_map_builder(image, None) is not None:
        compare(file, partial(_builder, image), clean=bool(data[0] & 64), size=4096 + 997 * data[1])


def _builder(image: ImageInfo, length: int | None) -> MapBuilder:
    builder = bat_map_builder(image, length)
    assert builder is not None
    return builder


def seeds() -> list[bytes]:
    entries = b"".join(bytes((kind, place, 3, 0, 0)) for kind, place in ((1, 1), (5, 0), (0, 0), (1, 3), (2, 2)))
    return [
        bytes((choice | more, 4)) + cut + entries
        for choice in range(3)
        for more in (0, 12, 64)
        for cut in (b"\0\0", b"\0\x10", b"\x7f\0")
    ]


if __name__ == "__main__":
    run(target, seeds(), 256, fixed=1_000)
