"""Writer of VDI, VHD and VHDX files with any placement of blocks, sound and damaged, from a seed.

Shares nothing with the code under test. Headers are those of `tests.corpus`.
"""

import random
import struct
from dataclasses import dataclass, field
from functools import cache

from tests import corpus
from tests.corpus import MIB

SECTOR = 512
BLOCKS = {"vdi": MIB, "vhdx": MIB}
"""Size of the blocks, where it does not vary."""


@dataclass
class BatImage:
    """One image: `blocks` are the contents of the allocated blocks, `places` their positions in units of the file."""

    format: str
    disk_size: int
    block_size: int
    blocks: dict[int, bytes]
    places: dict[int, int]
    bitmaps: dict[int, bytes] = field(default_factory=dict)
    """Sector bitmaps of a VHD's blocks; without one, all sectors hold data."""
    entries: dict[int, int] = field(default_factory=dict)
    """Raw entries of the table that replace the computed ones."""
    header: dict[str, object] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return -(-self.disk_size // self.block_size)

    @property
    def bitmap_size(self) -> int:
        return -(-self.block_size // (SECTOR * 8 * SECTOR)) * SECTOR

    def offset(self, place: int) -> int:
        """Return the offset in the file of the block (of a VHD's bitmap) at `place`."""
        match self.format:
            case "vdi":
                return 1024 + place * MIB
            case "vpc":
                return 4096 + place * (self.block_size + self.bitmap_size)
            case _:
                return (4 + place) * MIB

    def entry(self, number: int) -> int:
        if number in self.entries:
            return self.entries[number]
        place = self.places.get(number)
        match self.format:
            case "vdi":
                return 0xFFFF_FFFF if place is None else place
            case "vpc":
                return 0xFFFF_FFFF if place is None else self.offset(place) // SECTOR
            case _:
                return 0 if place is None else self.offset(place) | 6

    def content(self) -> bytes:
        numbers = range(self.count)
        match self.format:
            case "vdi":
                made = bytearray(corpus.vdi(size=self.disk_size, blocks=self.count, allocated=len(self.places)))
                table, at = struct.pack(f"<{self.count}I", *map(self.entry, numbers)), 512
            case "vpc":
                made = bytearray(
                    corpus.vhd_dynamic(
                        entries=self.count, block_size=self.block_size, size=self.disk_size, **self.header
                    )
                )
                table, at = struct.pack(f">{self.count}I", *map(self.entry, numbers)), 1536
            case _:
                made = bytearray(_vhdx())
                struct.pack_into("<Q", made, 2 * MIB + (64 << 10) + 8, self.disk_size)
                table, at = struct.pack(f"<{self.count}Q", *map(self.entry, numbers)), 3 * MIB
        made[at : at + len(table)] = table
        end = max([self.offset(place + 1) for place in self.places.values()], default=self.offset(0))
        made += bytes(max(0, end - len(made)))
        for number, place in self.places.items():
            start = self.offset(place)
            if self.format == "vpc":
                bitmap = self.bitmaps.get(number, b"\xff" * self.bitmap_size)
                made[start : start + len(bitmap)] = bitmap
                start += len(bitmap)
            data = self.blocks[number]
            made[start : start + len(data)] = data
        if self.format == "vpc":
            made += made[:SECTOR]
        return bytes(made)

    def disk(self) -> bytes:
        """Return the disk that the image describes if it is sound."""
        whole = bytearray(self.count * self.block_size)
        for number in self.places:
            data = bytearray(self.blocks[number])
            for sector in range(self.block_size // SECTOR if number in self.bitmaps else 0):
                if not self.bitmaps[number][sector // 8] >> (7 - sector % 8) & 1:
                    data[sector * SECTOR : (sector + 1) * SECTOR] = bytes(SECTOR)
            whole[number * self.block_size : number * self.block_size + len(data)] = data
        return bytes(whole[: self.disk_size])


@cache
def _vhdx() -> bytes:
    return corpus.vhdx(size=MIB, block_size=MIB)


def _data(dice: random.Random, size: int) -> bytes:
    """Return mostly zeros with a few runs of noise or text at sector boundaries."""
    made = bytearray(size)
    for _ in range(dice.randint(0, 4)):
        at = dice.randrange(size // SECTOR) * SECTOR
        run = min(size - at, SECTOR * dice.choice([1, 3, 8, 64, 300]))
        made[at : at + run] = dice.randbytes(run) if dice.random() < 0.5 else (b"%07d\n" % at) * (run // 8)
    return bytes(made)


def random_image(name: str, seed: int) -> BatImage:
    """Return a sound image: sparse or dense, its blocks in order or not, with gaps or without."""
    dice = random.Random(f"{name} {seed}")
    header: dict[str, object] = {}
    block = BLOCKS.get(name) or 1 << dice.choice([12, 13, 16, 18])
    sectors = dice.randint(1, 4 * block // SECTOR if block >= MIB else min(40 * block, 2 * MIB) // SECTOR)
    if name == "vpc" and dice.random() < 0.4:
        # Other writers than QEMU: the geometry decides, and not the size in bytes.
        geometry = (dice.randint(1, 30), dice.choice([1, 4, 16]), dice.choice([1, 7, 17]))
        sectors = geometry[0] * geometry[1] * geometry[2]
        header = {"geometry": geometry, "app": b"vbox"}
    size = sectors * SECTOR
    count = -(-size // block)
    if count > 128:
        # The headers leave room for as many entries.
        block *= 1 << (count // 128).bit_length()
        count = -(-size // block)
    numbers = [n for n in range(count) if dice.random() < dice.choice([0.1, 0.6, 1])]
    places = dice.sample(range(len(numbers) + dice.choice([0, 0, 2])), len(numbers))
    if dice.random() < 0.5:
        places.sort()
    image = BatImage(
        name, size, block, {n: _data(dice, block) for n in numbers}, dict(zip(numbers, places, strict=True)),
        header=header,
    )  # fmt: skip
    if name == "vpc":
        for number in numbers:
            if dice.random() < 0.5:
                # QEMU does not read the bitmap, so a sector without data holds zeros.
                bits = bytearray(image.bitmap_size)
                data = image.blocks[number]
                for sector in range(block // SECTOR):
                    if any(data[sector * SECTOR : (sector + 1) * SECTOR]) or dice.random() < 0.1:
                        bits[sector // 8] |= 0x80 >> sector % 8
                image.bitmaps[number] = bytes(bits)
    return image


def damaged(image: BatImage, seed: int) -> bytes:
    """Return the image's file after one change to its tables, its headers or its length."""
    dice = random.Random(f"damage {image.format} {seed}")
    number = dice.randrange(image.count)
    kind = dice.choice(["cut", "cut to a sector", "elsewhere", "shared", "shifted", "state", "far", "header"])
    match kind:
        case "elsewhere":
            image.entries[number] = image.entry(number) ^ 1 << dice.randrange(32)
        case "shared":
            image.entries[number] = image.entry(dice.randrange(image.count))
        case "shifted":
            image.entries[number] = (image.entry(number) + dice.choice([1, 2, 8])) & 0xFFFF_FFFF
        case "state" if image.format == "vhdx":
            image.entries[number] = image.entry(number) & ~7 | dice.randrange(8)
        case "far":
            image.entries[number] = dice.randrange(1 << 32)
    made = bytearray(image.content())
    if kind.startswith("cut"):
        length = dice.randrange(len(made) // 3, len(made))
        del made[length // SECTOR * SECTOR if kind == "cut to a sector" else length :]
    if kind == "header":
        made[dice.randrange(min(2048, len(made)))] ^= 1 << dice.randrange(8)
    return bytes(made)
