"""What the matrix has in common: its cells, and which pipeline an image must take, said independently of the planner."""

from tests.integration.fixtures_images import KINDS, REPRESENTATIVE, VOLUMES, WRAPPERS, Image

ONCE = frozenset({"xz", "zst", "tar.gz"})
"""Wrappers around one image of each sort; plain and gz are around all of them."""
SORTS = {*REPRESENTATIVE, "raw-odd", "raw-tiny", "qcow2-512-zlib", "qcow2-zeros", "qcow2-scattered"}
CELLS = [
    (name, wrapper, volume)
    for name in KINDS
    for wrapper in WRAPPERS
    for volume in VOLUMES
    if name in SORTS or wrapper not in ONCE
    # The volumes that differ only in what lies around the disk take every format, wrapped and not.
    if volume not in ("grown", "blunt") or wrapper not in ONCE
]


def path_of(image: Image, *, ranges: bool) -> str:
    direct = ranges and not image.wrappers
    # A fixed VHD that is wrapped or comes once shows only at its end that it is more than a raw disk.
    match image.kind.engine:
        case "raw":
            return "raw-ranged" if direct else "raw-stream"
        case "qcow2":
            return "qcow2-ranged" if direct else "qcow2-stream"
        case _:
            return "qemu-bridge" if direct else "qemu-spool"
