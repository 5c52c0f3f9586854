"""Tests of the map of a VMDK, and of a stream whose tables follow its grains: any layout, and tables that lie."""

import random
import struct
import zlib

import pytest

from cdi.api.errors import CdiError, ContentTruncated, DecoderFailed, FormatUnsupported, ImageCorrupt
from cdi.image import vmdk_stream
from cdi.image.block_map import RUN_LIMIT, BlockMap, Encoding
from cdi.image.formats.vmdk import Header
from cdi.image.inspect import Inspector
from cdi.image.vmdk_map import VmdkMapBuilder
from cdi.image.vmdk_stream import GrainStream
from cdi.transfer.pipeline.cluster_writer import ClusterWriter
from tests.memory import MemoryTarget
from tests.vmdk_writer import FOOTER, SECTOR, Layout, disk_of, marker, random_layout, write

TEXT = [bytes([65 + n]) * 4096 for n in range(30)]


def map_of(file: bytes, dice: random.Random | None = None) -> BlockMap:
    """Build the map; with `dice`, the tables are fed in any order."""
    builder = VmdkMapBuilder(Header.parse(file), len(file))
    pending = builder.begin()
    while pending:
        table = pending.pop(dice.randrange(len(pending)) if dice else 0)
        assert table.offset + table.size <= len(file), "reads past the end"
        pending += builder.feed(table, file[table.offset : table.offset + table.size])[0]
    builder.finish()
    return builder.map


def by_map(file: bytes, *, clean: bool = True, dice: random.Random | None = None) -> bytes:
    image = map_of(file, dice)
    target = MemoryTarget(image.disk_size, reads_zero=clean)
    writer = ClusterWriter(target, image.block_size)
    for position in range(len(image)):
        extent = image.extent(position)
        writer.write_extent(extent, memoryview(file)[extent.host : extent.host + extent.size])
    writer.flush()
    if not clean:
        for hole in image.holes():
            target.zero(*hole)
    return bytes(target.disk)


def by_markers(file: bytes, *, clean: bool = True, step: int = 1000) -> bytes:
    header = Header.parse(file)
    stream = GrainStream(header)
    target = MemoryTarget(header.capacity * SECTOR, reads_zero=clean)
    writer = ClusterWriter(target, header.grain * SECTOR)
    base, stop = 0, 0
    while stop < len(file):
        stop = min(len(file), stop + step)
        for extent, data in stream.feed(memoryview(file)[base:stop], base, final=stop == len(file)):
            writer.write_extent(extent, data)
        base = min(stop, stream.position)
    stream.finish(len(file))
    writer.flush()
    if not clean:
        for hole in stream.holes():
            target.zero(*hole)
    return bytes(target.disk)


def info_of(file: bytes):
    inspector = Inspector(len(file))
    while (want := inspector.next_range()) is not None:
        inspector.feed(want[0], file[want[0] : sum(want)])
    return inspector.result()


def footer_layout(**more) -> Layout:
    grains = {number: TEXT[number] for number in (0, 1, 2, 9, 17)}
    return Layout(20 * 8 - 3, grains=grains, compressed=True, footer=True, **more)


def patched(file: bytes, offset: int, *values: int) -> bytes:
    return file[:offset] + struct.pack(f"<{len(values)}I", *values) + file[offset + 4 * len(values) :]


def markers(file: bytes, kind: int) -> list[int]:
    """Return the offsets of the metadata markers of one type."""
    found = (at for at in range(24 * SECTOR, len(file), SECTOR))
    return [
        at
        for at in found
        if struct.unpack_from("<II", file, at + 8) == (0, kind) and file[at] and not any(file[at + 16 : at + SECTOR])
    ]


@pytest.mark.parametrize("seed", range(0, 600, 100))
def test_any_layout_gives_the_disk(seed):
    for number in range(seed, seed + 100):
        layout, dice = random_layout(number), random.Random(number)
        file, disk = write(layout), disk_of(layout)
        assert by_map(file, clean=dice.random() < 0.5, dice=dice) == disk, number
        if layout.footer:
            step = dice.choice([100, 512, 5000, 1 << 20])
            assert by_markers(file, clean=dice.random() < 0.5, step=step) == disk, number


class TestMap:
    def test_adjacent_grains_are_one_extent(self):
        layout = Layout(40 * 8, entries=64, grains={number: TEXT[number] for number in (3, 4, 5, 9)})
        image = map_of(write(layout))
        assert [(image.extent(n).guest, image.extent(n).length) for n in range(2)] == [(12288, 12288), (36864, 4096)]
        assert len(image) == 2
        assert image.data_bytes() == 16384

    def test_long_runs_are_cut(self):
        layout = Layout(600 * 8, entries=512, grains=dict.fromkeys(range(300), TEXT[0]))
        assert map_of(write(layout)).extent(0).length == RUN_LIMIT

    def test_grains_of_zeros_are_no_data(self):
        layout = Layout(40 * 8, grains={3: TEXT[3]}, zeros={1, 2, 30})
        assert len(map_of(write(layout))) == 1

    @pytest.mark.parametrize("compressed", [False, True])
    def test_a_grain_that_is_used_twice_is_refused(self, compressed):
        file = write(
            Layout(16 * 8, entries=16, grains={1: TEXT[1], 2: TEXT[2]}, compressed=compressed, redundant=False)
        )
        table = 22 * SECTOR
        first = struct.unpack_from("<I", file, table + 4)[0]
        with pytest.raises(ImageCorrupt, match="0x1000 and 0x2000 are stored in the same place|0x1000 and 0x2000"):
            map_of(patched(file, table + 8, first))

    def test_a_table_that_is_used_twice_is_refused(self):
        file = write(Layout(16 * 8, entries=8, grains={1: TEXT[1], 9: TEXT[2]}, redundant=False))
        with pytest.raises(ImageCorrupt, match="grain table 1 at 0x2c00 is used twice"):
            map_of(patched(file, 21 * SECTOR, 22, 22))

    def test_a_table_outside_the_file_is_refused(self):
        file = write(Layout(16 * 8, entries=8, grains={1: TEXT[1]}, redundant=False))
        with pytest.raises(ContentTruncated, match="grain table 1"):
            map_of(patched(file, 21 * SECTOR, 22, 4000))

    @pytest.mark.parametrize("compressed", [False, True])
    def test_a_truncated_file_is_refused_before_data_is_read(self, compressed):
        dice = random.Random(4)
        grains = {number: dice.randbytes(4096) for number in range(4)}
        file = write(Layout(16 * 8, grains=grains, compressed=compressed))
        for size in range(len(file) - 4000, len(file), 512 if compressed else 100):
            if compressed and len(file.rstrip(b"\0")) <= size:
                break
            with pytest.raises(ContentTruncated, match="the file is truncated"):
                map_of(file[:size])

    def test_a_compressed_grain_of_another_place_is_refused(self):
        file = bytearray(write(Layout(16 * 8, grains={1: TEXT[1]}, compressed=True)))
        file[map_of(bytes(file)).hosts[0]] ^= 1
        with pytest.raises(DecoderFailed, match="no grain of disk offset 0x1000"):
            by_map(bytes(file))

    def test_a_compressed_grain_of_too_few_bytes_is_refused(self):
        layout = Layout(16 * 8, grains={1: TEXT[1][:100]}, compressed=True)
        with pytest.raises(DecoderFailed, match="holds 100 bytes, not 4096"):
            by_map(write(layout))

    def test_footer_and_header_must_agree(self):
        file = write(footer_layout())
        builder = VmdkMapBuilder(Header.parse(file), len(file))
        with pytest.raises(ImageCorrupt, match="contradict"):
            builder.feed(builder.begin()[0], bytes(SECTOR))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ((20, "<Q", 4096), "its grains have 2 MiB"),
            ((8, "<I", 0x10001), "its compressed grains have no markers"),
            ((56, "<Q", 30), "its tables follow its grains without a footer"),
        ],
    )
    def test_what_is_left_to_qemu(self, change, reason):
        file = bytearray(write(Layout(8192, grain=8, entries=512, compressed=True)))
        offset, form, value = change
        struct.pack_into(form, file, offset, value)
        if reason.startswith("its tables"):
            struct.pack_into("<Q", file, 64, 24)
        assert info_of(bytes(file) + bytes(1 << 16)).needs_qemu == (reason,)

    def test_stored_grains_in_front_of_their_tables_are_left_to_qemu(self):
        """They have no markers that say where they belong, so a stream of them cannot be read."""
        header, rest = (file := write(Layout(20 * 8, grains={1: TEXT[1]})))[:SECTOR], file[SECTOR:]
        file = patched(header, 56, 0xFFFF_FFFF, 0xFFFF_FFFF) + rest + marker(1, FOOTER) + header + marker(0, 0)
        assert info_of(file).needs_qemu == ("its tables follow grains that are not compressed",)

    def test_an_ordinary_image_needs_no_qemu(self):
        for layout in (Layout(80), Layout(80, compressed=True), footer_layout()):
            assert info_of(write(layout)).needs_qemu == ()


class TestStream:
    def test_the_grains_are_known_before_the_tables(self):
        file = write(footer_layout(each=False))
        stream = GrainStream(Header.parse(file))
        first = markers(file, vmdk_stream._TABLE)[0]
        grains = stream.feed(memoryview(file)[24 * SECTOR : first], 24 * SECTOR, final=False)
        assert [(extent.guest, extent.length, extent.encoding) for extent, _ in grains] == [
            (number * 4096, 4096, Encoding.GRAIN) for number in (0, 1, 2, 9, 17)
        ]

    def test_padding_between_grains_is_skipped(self):
        layout = footer_layout(gaps={0: 1, 3: 40})
        assert by_markers(write(layout)) == disk_of(layout)

    def test_every_truncation_is_noticed(self):
        file = write(footer_layout())
        for size in range(24 * SECTOR, len(file)):
            with pytest.raises(ContentTruncated, match="before its (footer|end-of-stream marker): it is truncated"):
                by_markers(file[:size], step=1 << 20)

    @pytest.mark.parametrize("tail", [b"x", bytes(512), bytes(5000)])
    def test_data_after_the_end_is_refused(self, tail):
        with pytest.raises(ImageCorrupt, match="data follows the end-of-stream marker"):
            by_markers(write(footer_layout()) + tail)

    def test_a_grain_that_no_table_names_is_refused(self):
        file = write(footer_layout())
        table = markers(file, vmdk_stream._TABLE)[0] + SECTOR
        with pytest.raises(ImageCorrupt, match="the grain of disk offset 0x1000 is in no grain table"):
            by_markers(patched(file, table + 4, 0))

    def test_a_table_that_the_directory_does_not_name_is_refused(self):
        file = write(footer_layout())
        directory = markers(file, vmdk_stream._DIRECTORY)[0] + SECTOR
        with pytest.raises(ImageCorrupt, match="the grain of disk offset 0x9000 is in no grain table"):
            by_markers(patched(file, directory + 4, 0))

    @pytest.mark.parametrize("place", [2, 27, 4000, 0xFFFF_FFFF])
    @pytest.mark.parametrize("slot", [1, 5])
    def test_an_entry_without_its_grain_is_refused(self, place, slot):
        file = write(footer_layout())
        table = markers(file, vmdk_stream._TABLE)[0] + SECTOR
        with pytest.raises(ImageCorrupt, match=f"names a grain at sector {place}, where it is not"):
            by_markers(patched(file, table + 4 * slot, place))

    def test_a_directory_that_names_another_table_is_refused(self):
        file = write(footer_layout())
        directory = markers(file, vmdk_stream._DIRECTORY)[0] + SECTOR
        first, second, third = struct.unpack_from("<III", file, directory)
        for entries in ((second, first, third), (first, second, first), (first, second, 30)):
            with pytest.raises(ImageCorrupt, match="the grain directory places table . at sector"):
                by_markers(patched(file, directory, *entries))

    def test_a_footer_with_another_directory_is_refused(self):
        file = write(footer_layout())
        footer = markers(file, vmdk_stream._FOOTER)[0] + SECTOR
        with pytest.raises(ImageCorrupt, match="the footer places the grain directory at sector 25, where none is"):
            by_markers(patched(file, footer + 56, 25, 0))
        with pytest.raises(ImageCorrupt, match="footer and header contradict"):
            by_markers(patched(file, footer + 12, 8000, 0))

    @pytest.mark.parametrize(
        ("order", "words"),
        [([1, 2, 2], "stored twice"), ([2, 1], "stored after a later one"), ([20], "the disk has none")],
    )
    def test_the_order_of_the_grains(self, order, words):
        file = write(
            Layout(160, grains={n: TEXT[n] for n in order}, compressed=True, footer=True, order=order, each=False)
        )
        with pytest.raises(ImageCorrupt, match=words):
            by_markers(file)

    def test_a_grain_that_is_too_long_is_refused(self):
        file = write(footer_layout())
        with pytest.raises(ImageCorrupt, match="8181 bytes, more than two whole grains"):
            by_markers(patched(file, 24 * SECTOR + 8, 8181))

    def test_an_unknown_marker_is_refused(self):
        file = write(footer_layout())
        with pytest.raises(ImageCorrupt, match="unknown type 77"):
            by_markers(patched(file, markers(file, vmdk_stream._DIRECTORY)[0] + 12, 77))

    def test_metadata_that_is_too_short_is_refused(self):
        layout = Layout(
            2000 * 8, entries=512, grains={number: TEXT[0] for number in range(300)}, compressed=True, footer=True
        )
        file = write(layout)
        with pytest.raises(ImageCorrupt, match="has 128 of 512 entries|unknown type|is for sector"):
            by_markers(patched(file, markers(file, vmdk_stream._TABLE)[0], 1))

    def test_the_memory_of_a_stream_is_bounded(self, monkeypatch):
        monkeypatch.setattr(vmdk_stream, "GRAIN_LIMIT", 4)
        with pytest.raises(FormatUnsupported, match="more than 4 grains"):
            by_markers(write(footer_layout()))
        monkeypatch.setattr(vmdk_stream, "_DIRECTORY_LIMIT", 2)
        with pytest.raises(FormatUnsupported, match="the grain directory has 3 entries"):
            by_markers(write(footer_layout()))
        monkeypatch.undo()
        file = write(footer_layout())
        at = markers(file, vmdk_stream._DIRECTORY)[0]
        with pytest.raises(ImageCorrupt, match="more than 2 grain directories"):
            by_markers(file[:at] + 3 * file[at : at + 2 * SECTOR] + file[at:])


@pytest.mark.parametrize("seed", range(300))
def test_a_damaged_stream_is_the_same_disk_or_refused(seed):
    """What the markers say is what a reader of the tables sees, or it is refused."""
    dice = random.Random(seed)
    file = bytearray(write(footer_layout(each=seed % 2 == 0)))
    for _ in range(dice.choice([1, 1, 2])):
        at = dice.randrange(24 * SECTOR, len(file) - 4) & ~3
        struct.pack_into("<I", file, at, dice.choice([0, 1, 24, 30, 1 << 31, dice.randrange(60)]))
    try:
        disk = by_markers(bytes(file), step=dice.choice([100, 700, 1 << 20]))
    except CdiError:
        return
    assert by_map(bytes(file)) == disk


def test_zlib_streams_end_within_their_grain():
    """What follows a grain in its last sector does not matter."""
    layout = Layout(16 * 8, grains={1: TEXT[1]}, compressed=True)
    file = bytearray(write(layout))
    host = map_of(bytes(file)).hosts[0]
    size = struct.unpack_from("<I", file, host + 8)[0]
    assert zlib.decompress(file[host + 12 : host + 12 + size]) == TEXT[1]
    file[host + 12 + size : host + SECTOR] = b"\xff" * (SECTOR - 12 - size)
    assert by_map(bytes(file)) == disk_of(layout)
