"""Fuzz target: no qcow2 tables cause writes outside the disk, and both readers agree.

An input is two bytes of choices, two of the disk's size, one of where L1 lies, and then the file behind its header.

    python tests/fuzz/fuzz_qcow2_map.py -max_total_time=60
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.image", "cdi.transfer"]):
    from cdi.api.errors import CdiError
    from cdi.image.block_map import MapBuilder, MapTooLarge, pieces
    from cdi.image.formats.qcow2 import Qcow2Header, parse_header
    from cdi.image.qcow2_map import Qcow2MapBuilder
    from cdi.transfer.pipeline import windows
    from cdi.transfer.pipeline.cluster_writer import ClusterWriter
    from cdi.transfer.pipeline.mapped_stream import MappedDecoder

from tests.fuzz.seeds import run
from tests.memory import MemoryTarget
from tests.qcow2_writer import EXTENDED_L2, Layout, random_subclusters, write

CLUSTER_BITS = (9, 10, 12, 16)
MAX_SIZE = 1 << 20
MAX_LENGTH = 128 << 10


def file_of(data: bytes) -> tuple[bytes, Qcow2Header] | None:
    """Return a file with a valid header, so that the fuzzer mutates the tables."""
    extended = data[0] & 68 == 68
    bits = 14 if extended else CLUSTER_BITS[data[0] & 3]
    cluster = 1 << bits
    size = 512 * (1 + int.from_bytes(data[2:4], "big") % (MAX_SIZE // 512))
    entries = max(1, -(-size // (cluster * cluster // (16 if extended else 8))))
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2 + (data[0] >> 2 & 1), 0, 0, bits, size, 0, entries, data[4] * cluster,
        cluster, 1, 0, 0,
    )  # fmt: skip
    if data[0] & 4:
        zstd = data[0] & 8
        features = (8 if zstd else 0) | (EXTENDED_L2 if extended else 0)
        header += struct.pack(">QQQIIB7x", features, 0, 0, 4, 112, 1 if zstd else 0)
    file = header.ljust(cluster, b"\0") + data[5:]
    try:
        return file, parse_header(file[: 64 << 10], len(file))
    except CdiError:
        return None


def ranged(file: bytes, builder: MapBuilder, target: MemoryTarget, size: int) -> None:
    image = builder.map
    tables = builder.begin()
    while tables:
        table = tables.pop()
        more, found = builder.feed(table, file[table.offset : table.offset + table.size])
        assert found.stop == len(image)
        tables += more
    builder.finish()
    for whole in (True, False):
        position, before = 0, 0
        for piece in pieces(image, len(file), begin=0, size=size, whole=whole, gap=4096):
            assert piece.first == position
            position = piece.last
            assert before <= piece.start < piece.stop <= piece.fetch <= len(file)
            assert not whole or piece.start == before
            before = piece.stop
            if not whole:
                continue
            writer = ClusterWriter(target, image.block_size)
            view = memoryview(file)[piece.start : piece.fetch]
            for number in range(piece.first, piece.last):
                extent = image.extent(number)
                assert extent.guest + extent.length <= image.disk_size
                assert extent.host < piece.stop
                at = extent.host - piece.start
                writer.write_extent(extent, view[at : at + extent.size])
            writer.flush()
        assert position == len(image)
    if not target.reads_zero:
        for offset, length in image.holes():
            target.zero(offset, length)


def streamed(file: bytes, builder: MapBuilder, target: MemoryTarget, step: int) -> None:
    reader = MappedDecoder(builder, target, None)
    reader.run(memoryview(file)[at : at + step] for at in range(0, len(file), step))


def compare(file: bytes, make: Callable[[int | None], MapBuilder], *, clean: bool, size: int) -> None:
    """Read the file with both readers; `make` returns a builder for a file length, `size` is that of the pieces."""
    disks = []
    for read, length in ((ranged, len(file)), (streamed, None)):
        builder = make(length)
        disk = MemoryTarget(builder.map.disk_size, reads_zero=clean)
        try:
            read(file, builder, disk, size)
        except (CdiError, MapTooLarge):
            continue
        disks.append(bytes(disk.disk))
    assert len(disks) < 2 or disks[0] == disks[1], "the two readers do not agree"


def target(data: bytes) -> None:
    if len(data) < 6:
        return
    made = file_of(data)
    if made is None:
        return
    file, header = made
    windows.WINDOW_SIZE = 4096 if data[0] & 32 else 65536
    compare(file, partial(Qcow2MapBuilder, header), clean=bool(data[0] & 16), size=512 + 97 * data[1])


def seeds() -> list[bytes]:
    found = []
    for choice, bits in enumerate(CLUSTER_BITS[:3]):
        cluster = 1 << bits
        text = b"text" * (cluster // 4)
        noise = bytes((7 * n + n // 251) & 255 for n in range(cluster))
        clusters = {0: (noise, False), 1: (text, True), 2: (text, True), 9: (noise, False), 20: (text, True)}
        size = 25 * cluster
        for order in ([], [("data", 0), ("data", 1), "l1"], ["l1", ("data", 9), ("data", 1), ("junk", 700)]):
            file = write(Layout(size, bits, clusters, {5, 6}, order))
            l1_at = int.from_bytes(file[40:48], "big")
            head = bytes((choice | 4, 3)) + (size // 512 - 1).to_bytes(2, "big") + bytes((l1_at // cluster,))
            body = file[cluster:]
            found += [bytes((head[0] | more,)) + head[1:] + body for more in (0, 16, 48)]
            found.append(bytes((choice,)) + head[1:] + body)
    for seed in range(12):
        layout = random_subclusters(seed)
        file = write(layout)
        if len(file) <= MAX_LENGTH and layout.virtual_size <= MAX_SIZE:
            l1_at = int.from_bytes(file[40:48], "big") >> 14
            found.append(
                bytes((68, 3)) + (layout.virtual_size // 512 - 1).to_bytes(2, "big") + bytes((l1_at,)) + file[1 << 14 :]
            )
    return found


if __name__ == "__main__":
    run(target, seeds(), MAX_LENGTH, fixed=6_000)
