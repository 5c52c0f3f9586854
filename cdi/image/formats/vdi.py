"""VirtualBox disk images, version 1.1 (VirtualBox' VDICore.h); limits are those of QEMU's driver."""

from __future__ import annotations

import struct
from typing import Final

from cdi.api.errors import BackingFileRefused, FormatUnsupported, ImageCorrupt
from cdi.image.checks import Checklist
from cdi.image.formats.content import Inspection, RandomAccessContent
from cdi.image.info import ImageInfo
from cdi.image.sizes import MEBI, SECTOR, round_up

MIN_HEADER: Final = 456

_TYPES: Final = {1: "dynamic", 2: "static", 3: "undo", 4: "differencing"}


def inspect(content: RandomAccessContent) -> Inspection:
    """Inspect the header, which describes the whole image; raise the `ImageError` of the gravest failed check."""
    head = content.head
    if len(head) < MIN_HEADER:
        raise ImageCorrupt("the file ends within the header", where="vdi")
    yield from ()
    version, _, kind = struct.unpack_from("<III", head, 68)
    map_offset, data_offset, _, _, _, sector_size, _, disk_size, block_size, extra, blocks, allocated = (
        struct.unpack_from("<IIIIIIIQIIII", head, 340)
    )
    linked, parent = head[424:440], head[440:456]
    checks = Checklist("vdi")
    checks.check(version == 0x0001_0001, "version", f"version {version >> 16}.{version & 0xFFFF}", FormatUnsupported)
    overlay = kind in (3, 4) or any(linked) or any(parent)
    checks.check(
        not overlay,
        "parent image",
        "it is a differencing image that needs a parent" if overlay else "none",
        BackingFileRefused,
    )
    variant = _TYPES.get(kind)
    checks.check(variant is not None, "image type", variant or f"unknown type {kind}", FormatUnsupported)
    checks.check(sector_size == SECTOR, "sector size", f"sectors of {sector_size} bytes", FormatUnsupported)
    usual = checks.check(block_size == MEBI, "block size", f"blocks of {block_size} bytes", FormatUnsupported)
    # QEMU ignores them and reads every block from the wrong place.
    checks.check(extra == 0, "bytes before blocks", f"{extra} bytes precede each block", FormatUnsupported)
    size = round_up(disk_size, SECTOR)
    if checks.expect_size(size) and usual:
        checks.check(
            size <= blocks * block_size,
            "map covers the disk",
            f"{blocks} blocks of {block_size} bytes for a disk of {size} bytes",
        )
    checks.check(allocated <= blocks, "blocks in use", f"{allocated} of {blocks} blocks are in use")
    for name, offset in (("block map", map_offset), ("data", data_offset)):
        checks.check(
            offset % SECTOR == 0 and offset >= SECTOR, f"{name} place", f"the {name} begins at offset {offset:#x}"
        )
    checks.check(map_offset + 4 * blocks <= data_offset, "map before data", f"the block map has {blocks} entries")
    if content.length is not None:
        end = data_offset if allocated else map_offset + 4 * blocks
        checks.check(
            end <= content.length, "map within the file", f"its map ends before {end} of {content.length} bytes"
        )
    passed = checks.raise_for_failures()
    return ImageInfo(
        format="vdi", variant=variant, virtual_size=size, cluster_size=block_size, version=1, checks=passed
    )
