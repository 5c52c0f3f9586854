"""Small VMDK files of every layout: with and without compression, tables in front or behind, grains in any order."""

import random
import struct
import zlib
from dataclasses import dataclass, field

from tests.corpus import vmdk_descriptor, vmdk_header

SECTOR = 512
AT_END = 0xFFFF_FFFF_FFFF_FFFF
GRAIN, TABLE, DIRECTORY, FOOTER = "grain", 1, 2, 3


@dataclass
class Layout:
    """The layout of a file; sizes are sectors.

    Attributes:
        grains: number of the grain → its bytes.
        zeros: grains that are marked as zeros in their table.
        order: order in which the grains are stored; None is ascending.
        footer: whether tables follow the grains, and a footer names the directory.
        each: whether each table follows its grains; else all tables follow all grains.
        gaps: sectors of zeros in front of the n-th stored grain.
        tables_first: of a file without footer, whether the tables precede the grains.
    """

    capacity: int
    grain: int = 8
    entries: int = 8
    grains: dict = field(default_factory=dict)
    zeros: set = field(default_factory=set)
    compressed: bool = False
    footer: bool = False
    each: bool = True
    order: list | None = None
    gaps: dict = field(default_factory=dict)
    tables_first: bool = True
    redundant: bool = True


def up(data):
    return data + bytes(-len(data) % SECTOR)


def marker(sectors, kind):
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def packed(number, layout):
    data = zlib.compress(layout.grains[number][: (layout.capacity - number * layout.grain) * SECTOR], 6)
    return up(struct.pack("<QI", number * layout.grain, len(data)) + data)


def header_of(layout, directory, overhead):
    flags = 1 | (2 if layout.redundant and not layout.footer else 0) | (4 if layout.zeros else 0)
    return vmdk_header(
        version=3 if layout.compressed else 2 if layout.zeros else 1,
        flags=flags | (0x30000 if layout.compressed else 0), capacity=layout.capacity, grain=layout.grain,
        entries=layout.entries, directory=directory, overhead=overhead, compression=int(layout.compressed),
    )  # fmt: skip


def write(layout):
    """Return the file's bytes."""
    kind = "streamOptimized" if layout.compressed else "monolithicSparse"
    text = vmdk_descriptor(kind=kind, extents=f'RW {layout.capacity} SPARSE "disk.vmdk"').ljust(20 * SECTOR, b"\0")
    order = sorted(layout.grains) if layout.order is None else layout.order
    return _with_footer(layout, text, order) if layout.footer else _plain(layout, text, order)


def tables_of(layout, places):
    """Return the tables that are not empty, by their index, given the sector of each grain."""
    tables = {}
    for number in sorted({*places, *layout.zeros}):
        table = tables.setdefault(number // layout.entries, [0] * layout.entries)
        table[number % layout.entries] = places.get(number, 1)
    return {index: up(struct.pack(f"<{layout.entries}I", *table)) for index, table in tables.items()}


def directory_of(layout, at):
    count = -(-layout.capacity // (layout.grain * layout.entries))
    return up(struct.pack(f"<{count}I", *(at.get(index, 0) for index in range(count))))


def _plain(layout, text, order):
    bodies = {number: packed(number, layout) if layout.compressed else layout.grains[number] for number in order}
    shape = tables_of(layout, dict.fromkeys(order, 2))
    directory = len(directory_of(layout, {})) // SECTOR
    size = len(up(bytes(4 * layout.entries))) // SECTOR
    metadata = directory + size * len(shape)
    before = 21 + (metadata if layout.redundant else 0)
    data_at = before + metadata if layout.tables_first else before
    overhead = data_at = -(-data_at // layout.grain) * layout.grain
    data, places = bytearray(), {}
    for nth, number in enumerate(order):
        data += bytes(SECTOR * layout.gaps.get(nth, 0))
        places[number] = data_at + len(data) // SECTOR
        data += up(bodies[number])
    tables_at = before if layout.tables_first else data_at + len(data) // SECTOR
    tables = tables_of(layout, places)
    at = {index: tables_at + directory + size * nth for nth, index in enumerate(tables)}
    metadata = directory_of(layout, at) + b"".join(tables.values())
    front = (header_of(layout, tables_at, overhead) + text).ljust(before * SECTOR, b"\0")
    if layout.tables_first:
        return (front + metadata).ljust(data_at * SECTOR, b"\0") + bytes(data)
    return front.ljust(data_at * SECTOR, b"\0") + bytes(data) + metadata


def _with_footer(layout, text, order):
    out = bytearray((header_of(layout, AT_END, 24) + text).ljust(24 * SECTOR, b"\0"))
    places, at = {}, {}

    def add_table(index, table):
        out.extend(marker(len(table) // SECTOR, TABLE))
        at[index] = len(out) // SECTOR
        out.extend(table)

    for nth, number in enumerate(order):
        out += bytes(SECTOR * layout.gaps.get(nth, 0))
        places[number] = len(out) // SECTOR
        out += packed(number, layout)
        index = number // layout.entries
        if layout.each and all(other // layout.entries != index for other in order[nth + 1 :]):
            add_table(index, tables_of(layout, places)[index])
    for index, table in tables_of(layout, places).items():
        if index not in at:
            add_table(index, table)
    directory = directory_of(layout, at)
    out += marker(len(directory) // SECTOR, DIRECTORY)
    placed = len(out) // SECTOR
    out += directory + marker(1, FOOTER) + header_of(layout, placed, 24) + marker(0, 0)
    return bytes(out)


def needs_qemu(disk, grain=4096):
    """Return an image of a disk that only QEMU reads, because of the size of its grains (2 MiB unless given in sectors)."""
    size = grain * SECTOR
    parts = {number: disk[number * size :][:size] for number in range(-(-len(disk) // size))}
    grains = {number: part.ljust(size, b"\0") for number, part in parts.items() if part.count(0) < len(part)}
    return write(Layout(len(disk) // SECTOR, grain, 512, grains))


def disk_of(layout):
    """Return the disk that the file holds."""
    disk = bytearray(layout.capacity * SECTOR)
    for number, data in layout.grains.items():
        start = number * layout.grain * SECTOR
        room = min(len(data), len(disk) - start)
        disk[start : start + room] = data[:room]
    return bytes(disk)


def random_layout(seed):
    """Return a layout that some writer might choose."""
    dice = random.Random(seed)
    grain, entries = dice.choice([1, 2, 8, 16]), dice.choice([1, 4, 32, 512])
    total = dice.choice([1, 3, entries, entries + 1, 100])
    total = min(total, 300)
    capacity = max(1, total * grain - dice.choice([0, 0, 1, grain // 2]))
    total = -(-capacity // grain)
    numbers = sorted(dice.sample(range(total), dice.choice([0, 1, total // 2, total])) if total else [])
    size = grain * SECTOR

    def content():
        if dice.random() < 0.3:
            return dice.randbytes(size)
        noise = dice.randbytes(dice.choice([1, 7, 100]))
        return (noise * (size // len(noise) + 1))[:size]

    compressed = dice.random() < 0.6
    footer = compressed and dice.random() < 0.6
    order = numbers[:]
    if dice.random() < 0.3 and not footer:
        dice.shuffle(order)
    zeros = set(dice.sample(range(total), total // 5)) - set(numbers) if dice.random() < 0.3 else set()
    return Layout(
        capacity, grain, entries, {number: content() for number in numbers}, zeros, compressed, footer,
        dice.random() < 0.5, order, {dice.randrange(total): dice.randrange(1, 4)} if dice.random() < 0.2 else {},
        compressed or dice.random() < 0.8, dice.random() < 0.5,
    )  # fmt: skip
