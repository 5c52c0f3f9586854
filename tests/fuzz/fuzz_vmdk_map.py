"""Fuzz target: no VMDK tables or markers cause writes outside the disk, and all readers agree.

An input is two bytes of choices, one of the disk's size, and then the file behind its header and descriptor; a compressed file
may have its tables in front, or behind its grains with a footer.

    python tests/fuzz/fuzz_vmdk_map.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.image", "cdi.transfer"]):
    from cdi.api.errors import CdiError
    from cdi.image import block_map
    from cdi.image.block_map import MapTooLarge
    from cdi.image.formats.vmdk import AT_END, Header
    from cdi.image.vmdk_map import VmdkMapBuilder
    from cdi.transfer.pipeline import windows
    from cdi.transfer.pipeline.cluster_writer import ClusterWriter
    from cdi.transfer.pipeline.mapped_stream import GrainDecoder, MappedDecoder

from tests.corpus import vmdk_header
from tests.fuzz.seeds import run
from tests.memory import MemoryTarget
from tests.vmdk_writer import SECTOR, random_layout, write

FRONT, PLAIN = 24 * SECTOR, 21
GRAIN, ENTRIES = 8, 32


def file_of(data: bytes) -> tuple[bytes, Header]:
    """Return a file with a valid header, so that the fuzzer mutates tables, markers and grains."""
    compressed, footer = bool(data[0] & 1), bool(data[0] & 2)
    head = vmdk_header(
        version=3, flags=4 | (0x30001 if compressed else 1), capacity=1 + 8 * data[2], grain=GRAIN, entries=ENTRIES,
        directory=AT_END if compressed and footer else PLAIN, overhead=24, compression=int(compressed),
    )  # fmt: skip
    header = Header.parse(head)
    assert header is not None
    return head.ljust(FRONT if compressed and footer else PLAIN * SECTOR, b"\0") + data[3:], header


def ranged(file: bytes, header: Header, target: MemoryTarget) -> None:
    builder = VmdkMapBuilder(header, len(file))
    pending = builder.begin()
    while pending:
        table = pending.pop()
        assert 0 <= table.offset < table.offset + table.size <= len(file)
        pending += builder.feed(table, file[table.offset : table.offset + table.size])[0]
    builder.finish()
    writer = ClusterWriter(target, builder.map.block_size)
    for number in range(len(builder.map)):
        extent = builder.map.extent(number)
        assert extent.guest + extent.length <= target.size
        assert extent.host < len(file)
        writer.write_extent(extent, memoryview(file)[extent.host : extent.host + extent.size])
    writer.flush()
    if not target.reads_zero:
        for hole in builder.map.holes():
            target.zero(*hole)


def streamed(file: bytes, header: Header, target: MemoryTarget, step: int) -> None:
    if header.directory_offset == AT_END:
        decoder = GrainDecoder(header, target)
    else:
        decoder = MappedDecoder(VmdkMapBuilder(header, None), target, None)
    decoder.run(memoryview(file)[at : at + step] for at in range(0, len(file), step))


def target(data: bytes) -> None:
    if len(data) < SECTOR:
        return
    file, header = file_of(data)
    clean = bool(data[0] & 16)
    block_map.RUN_LIMIT = windows.MIN_CARRY = 8192
    windows.WINDOW_SIZE = 8192 if data[0] & 32 else 65536
    disks = []
    for read in (ranged, lambda *arguments: streamed(*arguments, 512 + 97 * data[1])):
        disk = MemoryTarget(header.capacity * SECTOR, reads_zero=clean)
        try:
            read(file, header, disk)
        except (CdiError, MapTooLarge):
            continue
        disks.append(bytes(disk.disk))
    assert len(disks) < 2 or disks[0] == disks[1], "the two readers do not agree"


def seeds() -> list[bytes]:
    found = []
    for seed in range(200):
        layout = random_layout(seed)
        layout.grain, layout.entries, layout.redundant = GRAIN, ENTRIES, False
        layout.capacity = 1 + 8 * min(100, max(layout.grains, default=3))
        layout.grains = {n: data[:4096].ljust(4096, b"x") for n, data in layout.grains.items() if n < 100}
        layout.order, layout.gaps, layout.zeros = None, {}, set()
        file = write(layout)
        start = FRONT if layout.footer else 21 * SECTOR
        choice = int(layout.compressed) | 2 * int(layout.footer)
        found.append(bytes((choice | 16 * (seed & 3), seed & 255, min(255, layout.capacity // 8))) + file[start:])
    return found


if __name__ == "__main__":
    run(target, seeds(), 48 << 10, fixed=15_000)
