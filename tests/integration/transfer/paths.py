"""The test matrix: its cells, and the pipeline that each image must take, stated independently of the planner."""

from tests.integration.fixtures_images import KINDS, REPRESENTATIVE, VOLUMES, WRAPPERS, Image

ONCE = frozenset({"xz", "zst", "tar.gz"})
"""Compression formats to combine with one image of each type; plain and gz are combined with all images."""
SORTS = {*REPRESENTATIVE, "raw-odd", "raw-tiny", "qcow2-512-zlib", "qcow2-zeros", "qcow2-scattered"}
CELLS = [
    (name, wrapper, volume)
    for name in KINDS
    for wrapper in WRAPPERS
    for volume in VOLUMES
    if name in SORTS or wrapper not in ONCE
    # Volumes that differ only around the disk are combined with every format, but not with every compression.
    if volume not in ("grown", "blunt") or wrapper not in ONCE
]


def path_of(image: Image, *, ranges: bool, local: bool = False) -> str:
    direct = ranges and not image.wrappers
    # A fixed VHD that is compressed or streamed shows only at its end that it is more than a raw disk.
    match image.kind.engine:
        case "raw":
            return "raw-ranged" if direct else "raw-stream"
        case "qcow2" | "mapped":
            return f"{image.kind.engine}-ranged" if direct else f"{image.kind.engine}-stream"
        case _:
            return "qemu-file" if local and not image.wrappers else "qemu-spool"
