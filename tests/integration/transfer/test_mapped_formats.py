"""VDI, VHD and VHDX of any layout, and qcow2 with subclusters, read over ranges and as a stream, against ``qemu-img convert``."""

import random
import struct
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cdi.api.errors import CdiError, ImageCorrupt
from cdi.image.bat_map import bat_map_builder
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector, map_builder
from cdi.transfer.pipeline.mapped_ranged import MappedRanged, load_map
from cdi.transfer.pipeline.mapped_stream import MappedDecoder
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark
from tests.bat_writer import BatImage, damaged, random_image
from tests.memory import MemorySource, MemoryTarget, control_of
from tests.qcow2_writer import disk_of, random_subclusters, write

FORMATS = ("vdi", "vpc", "vhdx")
IMAGES = 500


def inspected(content: bytes) -> ImageInfo:
    inspector = Inspector(len(content))
    while (want := inspector.next_range()) is not None:
        inspector.feed(want[0], content[want[0] : want[0] + want[1]])
    return inspector.result()


def ranged(content: bytes, image: ImageInfo, *, whole: bool, clean: bool) -> bytes:
    assert image.virtual_size is not None
    target = MemoryTarget(image.virtual_size, reads_zero=clean)
    fetcher = ResumingReader(MemorySource(content), control_of(jitter=0))
    builder = map_builder(image, content[: 64 << 10], len(content))
    table = load_map(fetcher, builder, 2, content[:4096])
    watermark = Watermark(0, None, ProgressMeter(), threading.Event(), None)
    MappedRanged(table, len(content), whole=whole).transfer(fetcher, target, watermark, 2)
    return bytes(target.disk)


def streamed(content: bytes, image: ImageInfo, *, step: int, clean: bool) -> bytes:
    assert image.virtual_size is not None
    target = MemoryTarget(image.virtual_size, reads_zero=clean)
    builder = map_builder(image, content[: 64 << 10], None)
    pieces = (memoryview(content)[at : at + step] for at in range(0, len(content), step))
    MappedDecoder(builder, target, None).run(pieces)
    return bytes(target.disk)


def readers(content: bytes, image: ImageInfo) -> tuple[Callable[[], bytes], ...]:
    """Return both readers of an image: from ranges to a target of zeros, and as a stream to one with old data."""
    return (
        partial(ranged, content, image, whole=False, clean=True),
        partial(streamed, content, image, step=77_777, clean=False),
    )


def by_qemu(path: Path, image: ImageInfo, content: bytes) -> bytes | None:
    """Return QEMU's disk, or None if it refuses the image."""
    path.write_bytes(content)
    out = path.with_suffix(".raw")
    done = subprocess.run(
        ["qemu-img", "convert", "-f", image.format, "-O", "raw", path, out], capture_output=True, check=False
    )
    return out.read_bytes() if done.returncode == 0 else None


def same(name: str, disk: bytes, expected: bytes) -> bool:
    """Compare a disk to QEMU's, which ignores a VHD's sector bitmaps: damage may clear a bit of a sector with data."""
    if name != "vpc" or disk == expected:
        return disk == expected
    sectors = range(0, len(expected), 512)
    return len(disk) == len(expected) and all(
        disk[at : at + 512] in (expected[at : at + 512], bytes(512)) for at in sectors
    )


@pytest.mark.parametrize("name", FORMATS)
def test_sound_images_are_read_as_qemu_reads_them(name: str, tmp_path: Path) -> None:
    for seed in range(IMAGES // 2):
        made = random_image(name, seed)
        content, disk = made.content(), made.disk()
        image = inspected(content)
        assert image.virtual_size == len(disk), seed
        clean = seed % 2 == 0
        assert ranged(content, image, whole=seed % 3 == 0, clean=clean) == disk, seed
        assert streamed(content, image, step=100_000 + 977 * seed, clean=clean) == disk, seed
        # The writer's own disk is compared to QEMU's in some cases: starting QEMU takes most of the time.
        if seed % 10 == 0:
            assert by_qemu(tmp_path / "image", image, content) == disk, seed


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_images_are_refused_or_read_as_qemu_reads_them(name: str, tmp_path: Path) -> None:
    refused = 0
    for seed in range(IMAGES // 2):
        content = damaged(random_image(name, 10_000 + seed), seed)
        disks = []
        try:
            image = inspected(content)
            if bat_map_builder(image, None) is None:
                continue
        except CdiError:
            refused += 1
            continue
        for read in readers(content, image):
            try:
                disks.append(read())
            except CdiError as error:
                assert error.what, seed
        refused += not disks
        if disks:
            assert len(disks) == 2, f"one reader refuses {seed}"
            assert disks[0] == disks[1], seed
            # Starting QEMU takes most of the time.
            if seed % 3:
                continue
            expected = by_qemu(tmp_path / "image", image, content)
            assert expected is None or same(name, disks[0], expected), seed
    assert IMAGES // 40 < refused < IMAGES // 2, "both happens"


def test_sectors_without_data_in_a_vhd_read_as_zeros() -> None:
    """QEMU never writes such a block, and does not look at the bitmap when it reads."""
    block = 16 << 10
    bitmap = bytes([0b1010_0000, 0, 0, 1]).ljust(512, b"\xff")
    made = BatImage("vpc", 20 << 10, block, {0: b"x" * block, 1: b"y" * block}, {0: 1, 1: 0}, {0: bitmap})
    content, image = made.content(), inspected(made.content())
    assert made.disk()[:2048] == b"x" * 512 + bytes(512) + b"x" * 512 + bytes(512)
    for clean in (True, False):
        assert ranged(content, image, whole=False, clean=clean) == made.disk()
        assert streamed(content, image, step=10_000, clean=clean) == made.disk()


@pytest.mark.parametrize("state", [6, 7])
def test_a_partially_present_block_is_refused_by_name(state: int) -> None:
    made = random_image("vhdx", 3)
    made.entries[0] = made.entry(0) & ~7 | state if 0 in made.places else 4 << 20 | state
    content = made.content()
    image = inspected(content)
    if state == 7:
        with pytest.raises(CdiError, match="only partially present"):
            ranged(content, image, whole=False, clean=True)
        with pytest.raises(CdiError, match="only partially present"):
            streamed(content, image, step=1 << 20, clean=True)


def test_a_block_beyond_the_end_of_any_file_is_refused() -> None:
    block, mib = 32 << 20, 1 << 20
    content = bytearray(random_image("vhdx", 3).content())
    struct.pack_into("<IIQ", content, 2 * mib + (64 << 10), block, 0, block)
    struct.pack_into("<Q", content, 3 * mib, 0xFFFF_FFFF_FFF0_0006)
    image = inspected(bytes(content))
    with pytest.raises(ImageCorrupt, match="stored at"):
        ranged(bytes(content), image, whole=False, clean=True)
    with pytest.raises(ImageCorrupt, match="beyond the end of any file"):
        streamed(bytes(content), image, step=mib, clean=True)


# --- subclusters of qcow2 -----------------------------------------------------------------------------------------


def test_subclusters_are_read_as_qemu_reads_them(tmp_path: Path) -> None:
    for seed in range(IMAGES // 2):
        made = random_subclusters(seed)
        content, disk = write(made), disk_of(made)
        image = inspected(content)
        clean = seed % 2 == 0
        assert ranged(content, image, whole=seed % 3 == 0, clean=clean) == disk, seed
        assert streamed(content, image, step=100_000 + 977 * seed, clean=clean) == disk, seed
        if seed % 10 == 0:
            assert by_qemu(tmp_path / "image", image, content) == disk, seed


def test_bitmaps_of_subclusters_that_lie_are_refused_or_read_as_qemu_reads_them(tmp_path: Path) -> None:
    refused = 0
    for seed in range(IMAGES // 2):
        made, dice = random_subclusters(10_000 + seed), random.Random(seed)
        assert made.bitmaps is not None
        for guest in dice.sample(sorted(made.bitmaps), len(made.bitmaps) // 8):
            made.bitmaps[guest] ^= 1 << dice.randrange(64)
        content = write(made)
        image, disks = inspected(content), []
        for read in readers(content, image):
            try:
                disks.append(read())
            except ImageCorrupt as error:
                assert "subclusters of disk offset 0x" in error.what, seed
        refused += not disks
        assert len(disks) != 1, f"one reader refuses {seed}"
        if seed % 5:
            continue
        expected = by_qemu(tmp_path / "image", image, content)
        assert (expected is None) == (not disks), seed
        assert not disks or disks == [expected] * 2, seed
    assert IMAGES // 40 < refused < IMAGES // 2, "both happens"
