"""VMDK files of any layout, read over ranges and as a stream, against ``qemu-img convert``."""

import random
import struct
import subprocess
import threading

import pytest

from cdi.api.errors import CdiError, ContentTruncated
from cdi.image import block_map
from cdi.image.formats.vmdk import AT_END, Header
from cdi.image.inspect import Inspector, map_builder
from cdi.transfer.pipeline import windows
from cdi.transfer.pipeline.mapped_ranged import MappedRanged, load_map
from cdi.transfer.pipeline.mapped_stream import GrainDecoder, MappedDecoder
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark
from tests.memory import MemorySource, MemoryTarget, control_of
from tests.vmdk_writer import SECTOR, Layout, disk_of, random_layout, write


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(block_map, "RUN_LIMIT", 4096)
    monkeypatch.setattr(windows, "MIN_CARRY", 4096)
    monkeypatch.setattr(windows, "WINDOW_SIZE", 8192)


def inspected(content, *, seekable=True):
    inspector = Inspector(len(content), seekable=seekable)
    while (want := inspector.next_range()) is not None:
        inspector.feed(want[0], content[want[0] : sum(want)])
    return inspector.result()


def ranged(content, *, whole=False, clean=True):
    image = inspected(content)
    assert not image.needs_qemu
    target = MemoryTarget(image.virtual_size, reads_zero=clean)
    reader = ResumingReader(MemorySource(content), control_of(jitter=0))
    table = load_map(reader, map_builder(image, content, len(content)), 2, content[:4096])
    watermark = Watermark(0, None, ProgressMeter(), threading.Event(), None)
    MappedRanged(table, len(content), whole=whole).transfer(reader, target, watermark, 2)
    return bytes(target.disk)


def streamed(content, *, step=5000, clean=True, length=None):
    image = inspected(content, seekable=False)
    assert not image.needs_qemu
    target = MemoryTarget(image.virtual_size, reads_zero=clean)
    header = Header.parse(content)
    if header.directory_offset == AT_END:
        decoder = GrainDecoder(header, target)
    else:
        decoder = MappedDecoder(map_builder(image, content, length), target, None)
    decoder.run(memoryview(content)[at : at + step] for at in range(0, len(content), step))
    return bytes(target.disk)


def by_qemu(directory, content):
    """Return QEMU's disk, or None if it refuses the image."""
    (directory / "disk.vmdk").write_bytes(content)
    command = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", "disk.vmdk", "disk.raw"]
    done = subprocess.run(command, cwd=directory, capture_output=True, check=False, timeout=60)
    return None if done.returncode else (directory / "disk.raw").read_bytes()


def damaged(content, dice):
    """Return a file that is truncated, extended, or has another number or bit somewhere."""
    data = bytearray(content)
    match dice.choice(["cut", "sectors", "number", "number", "number", "bit", "tail"]):
        case "cut":
            del data[dice.randrange(len(data)) :]
        case "sectors":
            del data[dice.randrange(len(data) // SECTOR) * SECTOR :]
        case "number":
            # What looks like the number of a sector, mostly in a table.
            places = [
                at for at in range(21 * SECTOR, len(data) - 4, 4) if data[at : at + 4].strip(b"\0") and not data[at + 2]
            ]
            if places:
                at = dice.choice(places)
                value = struct.unpack_from("<I", data, at)[0]
                new = dice.choice([0, 1, 2, value + 1, value * 2, 0xFFFF_FFFF, dice.randrange(len(data) // SECTOR + 2)])
                struct.pack_into("<I", data, at, new & 0xFFFF_FFFF)
        case "bit":
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        case "tail":
            data += bytes(SECTOR * dice.randrange(1, 4))
    return bytes(data)


def test_sound_images_are_read_as_qemu_reads_them(tmp_path):
    for seed in range(250):
        dice, layout = random.Random(seed), random_layout(seed)
        content, disk = write(layout), disk_of(layout)
        assert ranged(content, whole=dice.random() < 0.5, clean=dice.random() < 0.5) == disk, seed
        if layout.tables_first:
            length = dice.choice([None, len(content)])
            step = dice.choice([100, 512, 5000, 1 << 20])
            assert streamed(content, step=step, clean=dice.random() < 0.5, length=length) == disk, seed
        # The writer's own disk is compared to QEMU's in some cases: starting QEMU takes most of the time.
        if seed % 5 == 0:
            assert by_qemu(tmp_path, content) == disk, seed


def test_damaged_images_are_refused_or_read_as_qemu_reads_them(tmp_path):
    equal = refused = 0
    for seed in range(250):
        dice, layout = random.Random(seed), random_layout(1000 + seed)
        content = damaged(write(layout), dice)
        disks = []
        for read in (ranged, streamed):
            try:
                disks.append(read(content))
            except CdiError as error:
                assert error.what, seed
                refused += 1
        if disks:
            equal += 1
            expected = by_qemu(tmp_path, content)
            assert [disk == expected for disk in disks] == [True] * len(disks), seed
    assert equal > 50
    assert refused > 100


def test_data_in_front_of_its_tables_is_stored(tmp_path):
    layout = Layout(200 * 8, grains={n: random.Random(n).randbytes(4096) for n in range(100)}, tables_first=False)
    content = write(layout)
    assert streamed(content) == disk_of(layout) == by_qemu(tmp_path, content)


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_a_stream_of_qemu_that_is_cut_off_is_noticed(tmp_path, subformat):
    (tmp_path / "disk.raw").write_bytes(random.Random(3).randbytes(1 << 20) + bytes(1 << 20))
    command = [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        f"subformat={subformat}",
        "disk.raw",
        "disk.vmdk",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    content = (tmp_path / "disk.vmdk").read_bytes()
    assert streamed(content) == (tmp_path / "disk.raw").read_bytes()
    for length in (len(content) // 2, len(content) - 70_000, len(content) - 1024):
        with pytest.raises(ContentTruncated):
            streamed(content[:length])
