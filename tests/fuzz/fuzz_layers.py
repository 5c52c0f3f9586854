"""Fuzz target: the disk found in layers is the one that a container sees, or the image is rejected.

An input is a byte that says how the layers are packed and cut, then three bytes for each member (`tests.layers.items_of`).
What a container sees is found by extracting the layers one over another.

    python tests/fuzz/fuzz_layers.py -max_total_time=60
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.transfer.overlay", "cdi.transfer.disk_search", "cdi.transfer.unwrap"]):
    import cdi.transfer.disk_search
    import cdi.transfer.overlay
    import cdi.transfer.unwrap  # noqa: F401

from tests.fuzz.seeds import run
from tests.layers import KINDS, LINKS, NAMES, check, items_of


def target(data: bytes) -> None:
    if len(data) < 4:
        return
    pack = (bytes, lambda raw: gzip.compress(raw, 1))[data[0] & 1]
    check(list(items_of(data[1:])), pack=pack, step=(1 << 16, 700)[data[0] >> 1 & 1])


def encoded(*layers: list[tuple[str, str, str]]) -> bytes:
    """Return kinds, names and links as bytes."""
    made = bytearray([0])
    for items in layers:
        for number, (kind, name, link) in enumerate(items):
            made += bytes(((0x80 if not number else 0) | list(KINDS).index(kind), NAMES.index(name), LINKS.index(link)))
    return bytes(made)


def seeds() -> list[bytes]:
    disk = ("file", "disk/a", "")
    return [
        encoded([disk]),
        encoded([("directory", "disk/", ""), disk], [("file", "images/i", "")]),
        encoded([disk], [("file", "disk/b", "")]),
        encoded([disk], [("file", "disk/.wh.a", ""), ("file", "disk/b", "")]),
        encoded([disk], [("directory", "disk/", ""), ("file", "disk/.wh..wh..opq", ""), ("file", "disk/b", "")]),
        encoded([disk], [("file", ".wh.disk", "")], [("file", "disk/b", "")]),
        encoded([disk, disk]),
        encoded([disk], [("symlink", "disk/a", "../images/i")]),
        encoded([disk], [("directory", "disk/a", ""), ("file", "disk/a/x", "")]),
        encoded([("file", "images/i", ""), ("hardlink", "disk/a", "images/i")]),
        encoded([disk, ("hardlink", "disk/b", "disk/a")], [("file", "disk/.wh.a", "")]),
        encoded([("symlink", "disk", "images")], [disk]),
        encoded([("symlink", "disk", "images")], [("directory", "disk/", ""), disk]),
        encoded([disk], [("file", ".wh..wh..opq", ""), ("file", "disk", "")]),
    ]


if __name__ == "__main__":
    run(target, seeds(), 64, fixed=15_000)
