"""Completeness of images: handcrafted tables, truncated anywhere."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import ContentTruncated, FormatUnsupported, ImageCorrupt, ImageError
from cdi.image.block_map import NAME
from cdi.image.bounds_check import check_data_within_file
from cdi.image.checks import Check, checks_of
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector
from tests import corpus
from tests.corpus import MIB
from tests.qcow2_writer import Layout, write

SECTOR = 512


@dataclass
class File:
    """Mostly sparse file that checks that reads keep the promises of `check_data_within_file`."""

    length: int
    parts: dict[int, bytes] = field(default_factory=dict)
    served: int = 0
    calls: int = 0

    @classmethod
    def of(cls, content: bytes, length: int | None = None) -> "File":
        return cls(len(content) if length is None else length, {0: content})

    def at(self, offset: int, size: int) -> bytes:
        data = bytearray(size)
        for start, part in self.parts.items():
            first, last = max(start, offset), min(start + len(part), offset + size)
            if first < last:
                data[first - offset : last - offset] = part[first - start : last - start]
        return bytes(data)

    def read(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        self.calls += 1
        assert sum(size for _, size in ranges) <= 4 * MIB
        for offset, size in ranges:
            assert 0 < size <= MIB
            assert 0 <= offset <= offset + size <= self.length, "reads past the end"
            self.served += size
            yield self.at(offset, size)

    def info(self) -> ImageInfo:
        inspector = Inspector(self.length)
        while (want := inspector.next_range()) is not None:
            inspector.feed(want[0], self.at(*want))
        return inspector.result()

    def check(self) -> Check | None:
        return check_data_within_file(self.info(), self.length, self.read)

    def fate(self) -> type[ImageError] | None:
        """Return the error of the inspection or of the bounds check, if any."""
        try:
            check = self.check()
        except ImageError as error:
            return type(error)
        assert check is not None
        assert check.passed
        return None


def put(content: bytes, at: int, data: bytes) -> bytes:
    return content[:at].ljust(at, b"\0") + data + content[at + len(data) :]


# --- one image of each format: {index of a block: its index in the file} -----------------------------------------

Blocks = dict[int, int]


def vmdk(blocks: Blocks) -> tuple[bytes, int, int]:
    """Return grains of 64 KiB on a disk of ten and a half, after 64 KiB of headers and tables."""
    capacity = 10 * 128 + 64
    text = corpus.vmdk_descriptor(extents=f'RW {capacity} SPARSE "disk.vmdk"')
    table = bytearray(2048)
    for number, place in blocks.items():
        struct.pack_into("<I", table, 4 * number, 128 * (place + 1))
    content = put(corpus.vmdk(text, capacity=capacity), 26 * SECTOR, struct.pack("<I", 27))
    return put(content, 27 * SECTOR, bytes(table)), 64 << 10, 64 << 10


def vdi(blocks: Blocks) -> tuple[bytes, int, int]:
    table = bytearray(b"\xff" * 44)
    for number, place in blocks.items():
        struct.pack_into("<I", table, 4 * number, place)
    content = corpus.vdi(size=10 * MIB + MIB // 2, blocks=11, allocated=len(blocks))
    return put(content, 512, bytes(table)), 1024, MIB


def vhd(blocks: Blocks) -> tuple[bytes, int, int]:
    """Return blocks of 64 KiB, each preceded by a bitmap of one sector."""
    table = bytearray(b"\xff" * 44)
    for number, place in blocks.items():
        struct.pack_into(">I", table, 4 * number, 4 + 129 * place)
    content = corpus.vhd_dynamic(entries=11, block_size=64 << 10, size=21 << 15)
    return put(content, 1536, bytes(table)), 2048, 129 * SECTOR


@cache
def _vhdx() -> bytes:
    return corpus.vhdx(size=10 * MIB + MIB // 2, block_size=MIB)


def vhdx(blocks: Blocks) -> tuple[bytes, int, int]:
    table = bytearray(88)
    for number, place in blocks.items():
        struct.pack_into("<Q", table, 8 * number, (4 + place) * MIB | 6)
    return put(_vhdx(), 3 * MIB, bytes(table)), 4 * MIB, MIB


def qcow2(blocks: Blocks, *, extended: bool = False) -> tuple[bytes, int, int]:
    table = bytearray(256)
    for number, place in blocks.items():
        entry = 1 << 63 | (5 + place) << 16
        if extended:
            struct.pack_into(">QQ", table, 16 * number, entry, 0xFFFF_FFFF)
        else:
            struct.pack_into(">Q", table, 8 * number, entry)
    content = corpus.qcow2(size=21 << 15, clusters=5, incompatible=16 if extended else 0)
    content = put(content, 3 << 16, struct.pack(">Q", 1 << 63 | 4 << 16))
    return put(content, 4 << 16, bytes(table)), 5 << 16, 1 << 16


FORMATS: dict[str, Callable[[Blocks], tuple[bytes, int, int]]] = {
    "vmdk": vmdk,
    "vdi": vdi,
    "vhd": vhd,
    "vhdx": vhdx,
    "qcow2": qcow2,
    "qcow2-extended": lambda blocks: qcow2(blocks, extended=True),
}
WHOLE_LAST = {"vhd"}
"""Formats whose last block is stored completely, although half of it lies past the end of the disk."""
BLOCKS = 11


def needed(name: str, blocks: Blocks) -> int:
    """Return the minimum length of the file, computed without the code under test."""
    content, origin, size = FORMATS[name](blocks)
    ends = [len(content)]
    for number, place in blocks.items():
        here = size // 2 if number == BLOCKS - 1 and name not in WHOLE_LAST else size
        ends.append(origin + place * size + here)
    return max(ends)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None)
@given(
    blocks=st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(0, 40), min_size=1),
    cut=st.integers(-3 * SECTOR, 3 * SECTOR) | st.integers(-(3 << 20), 1 << 20),
)
def test_a_file_is_whole_where_every_block_ends_within_it(name: str, blocks: Blocks, cut: int) -> None:
    content, _, _ = FORMATS[name](blocks)
    end = needed(name, blocks)
    length = max(len(content), end + cut)
    fate = File.of(content, length).fate()
    if length >= end:
        assert fate is None
    elif name.startswith("qcow2") and length % SECTOR == 0:
        # This project's reader accepts a partial last cluster, but no cluster past the end.
        missing = any(5 + place << 16 >= length for place in blocks.values())
        assert fate is (ContentTruncated if missing else None)
    else:
        assert fate is ContentTruncated


@pytest.mark.parametrize("name", FORMATS)
def test_the_refusal_names_the_place(name: str) -> None:
    content, origin, size = FORMATS[name]({3: 2, 7: 5})
    disk = 7 * (size - SECTOR if name == "vhd" else size)
    with pytest.raises(ContentTruncated) as caught:
        File.of(content, origin + 3 * size + 99).check()
    assert f"disk offset {disk:#x} is stored at bytes {origin + 5 * size} to {origin + 6 * size}" in caught.value.what
    assert f"of a file of {origin + 3 * size + 99} bytes: the file is truncated" in caught.value.what
    assert caught.value.where == name.partition("-")[0]
    assert [(check.name, check.passed) for check in checks_of(caught.value)] == [(NAME, False)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_image_says_so(name: str) -> None:
    content, origin, size = FORMATS[name]({0: 0})
    check = File.of(content, origin + size).check()
    assert check is not None
    assert (check.name, check.passed) == (NAME, True)


def test_raw_content_has_no_tables() -> None:
    assert File.of(corpus.vhd_fixed()).check() is None
    assert File.of(b"GRUB" * 1000).check() is None


@pytest.mark.parametrize(
    "sample", [sample for sample in corpus.SAMPLES if sample.refusal is None], ids=lambda s: s.name
)
def test_images_without_data_are_whole(sample: corpus.Sample) -> None:
    File.of(sample.build()).check()


# --- malformed tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_an_absurd_place_is_damage_and_not_a_cut(name: str) -> None:
    content, origin, size = FORMATS[name]({1: 30_000})
    assert File.of(content, origin + size).fate() is ImageCorrupt


def test_entries_past_the_end_of_the_disk_are_not_read() -> None:
    far = {BLOCKS: 3000, BLOCKS + 1: 3000}
    for name in ("vmdk", "qcow2", "qcow2-extended"):
        content, origin, size = FORMATS[name]({0: 0, **far})
        assert File.of(content, origin + size).fate() is None, name


def test_what_reads_as_zeros_has_no_place() -> None:
    """Use entries without a block, some with an offset past the end of the file."""
    far = 1 << 40
    content, _, _ = vhdx({})
    for state in range(6):
        assert File.of(put(content, 3 * MIB, struct.pack("<Q", far | state))).fate() is None
    assert File.of(put(content, 3 * MIB, struct.pack("<Q", far | 7))).fate() is FormatUnsupported
    content, _, _ = vdi({})
    assert File.of(put(content, 512, struct.pack("<I", 0xFFFF_FFFE))).fate() is None
    content, _, _ = qcow2({})
    assert File.of(put(content, 4 << 16, struct.pack(">Q", 5 << 16 | 1))).fate() is None
    content, _, _ = qcow2({}, extended=True)
    assert File.of(put(content, 4 << 16, struct.pack(">QQ", 1 << 63 | 5 << 16, 0xFFFF_FFFF << 32))).fate() is None
    for flags, fate in ((3, ContentTruncated), (7, None)):
        capacity = 20480
        content = corpus.vmdk(flags=flags, capacity=capacity)
        content = put(content, 26 * SECTOR, struct.pack("<I", 27))
        assert File.of(put(content, 27 * SECTOR, struct.pack("<I", 1))).fate() is fate


def test_of_subclusters_those_that_are_there_count() -> None:
    content, origin, size = qcow2({}, extended=True)
    third = put(content, 4 << 16, struct.pack(">QQ", 1 << 63 | 5 << 16, 0b100))
    assert File.of(third, origin + 3 * (size // 32)).fate() is None
    assert File.of(third, origin + 3 * (size // 32) - 1).fate() is ContentTruncated


def test_entries_of_sector_bitmaps_are_passed_over() -> None:
    """Use blocks of 256 MiB, of which a chunk has sixteen."""
    size = 17 * 256 * MIB
    table = bytearray(8 * 18)
    struct.pack_into("<Q", table, 8 * 16, 1 << 50 | 6)
    content = put(corpus.vhdx(size=size, block_size=256 * MIB), 3 * MIB, bytes(table))
    assert File.of(content).fate() is None
    struct.pack_into("<Q", table, 8 * 17, 4 * MIB | 6)
    file = File.of(put(content, 3 * MIB, bytes(table)), 5 * MIB)
    with pytest.raises(ContentTruncated, match=f"disk offset {16 * 256 * MIB:#x} "):
        file.check()


# --- tables of tables -------------------------------------------------------------------------------------------


def test_a_grain_table_past_the_end_is_a_cut() -> None:
    content = put(corpus.vmdk(), 26 * SECTOR, struct.pack("<I", 500))
    with pytest.raises(ContentTruncated, match="grain table 0 is stored at bytes 256000 to 256640 of a file of 65536"):
        File.of(content).check()


@pytest.mark.parametrize("extended", [False, True])
def test_an_l2_table_past_the_end_is_a_cut(extended: bool) -> None:
    content, _, _ = qcow2({}, extended=extended)
    with pytest.raises(ContentTruncated, match="L2 table 0"):
        File.of(content[: 5 * 65536 - 1]).check()
    with pytest.raises(ImageCorrupt, match="not aligned"):
        File.of(put(content, 3 << 16, struct.pack(">Q", (4 << 16) + 512))).check()


def test_many_tables_are_read_in_few_pieces_and_any_order() -> None:
    """Scatter the 32 grain tables of a 1 GiB disk over the file; the last entry of one is past the end."""
    capacity = 2 << 20
    dice = random.Random(5)
    places = dice.sample(range(200, 4000, 8), 32)
    text = corpus.vmdk_descriptor(extents=f'RW {capacity} SPARSE "disk.vmdk"')
    file = File.of(corpus.vmdk(text, capacity=capacity), 4 * MIB)
    file.parts = {0: put(file.parts[0], 26 * SECTOR, struct.pack("<32I", *places))}
    for place in places:
        file.parts[place * SECTOR] = struct.pack("<512I", *[256] * 512)
    assert file.fate() is None
    assert file.calls <= 4
    assert file.served < 3 * MIB
    victim = dice.randrange(32)
    file.parts[places[victim] * SECTOR] = struct.pack("<512I", *[256] * 511, 9000)
    with pytest.raises(ContentTruncated, match=f"disk offset {(victim * 512 + 511) << 16:#x} "):
        file.check()


def many_tables(places: Sequence[int]) -> File:
    """Return a VMDK of 1 MiB whose disk needs this many grain tables, at the given sectors."""
    capacity = len(places) * 512 * 128
    text = corpus.vmdk_descriptor(extents=f'RW {capacity} SPARSE "disk.vmdk"')
    content = put(corpus.vmdk(text), 128 * SECTOR, struct.pack(f"<{len(places)}I", *places))
    head = corpus.vmdk_header(capacity=capacity, directory=128)
    return File.of(head + content[512:], max(MIB, len(content)))


def test_a_table_in_many_places_is_damage_found_early() -> None:
    """Reference one table 65536 times, which would take long to read each time."""
    file = many_tables([100] * 65536)
    with pytest.raises(ImageCorrupt, match="overlap"):
        file.check()
    assert file.served < MIB


def test_the_parts_of_a_directory_may_not_share_tables() -> None:
    """Reference the same tables from each part of the directory, which are checked one after the other."""
    file = many_tables([100 + 4 * (n % 16384) for n in range(65536)])
    file.length = 40 * MIB
    with pytest.raises(ImageCorrupt, match="overlap: together they exceed the size of the file"):
        file.check()
    assert file.served < 3 * file.length


def test_tables_upon_each_other_are_damage_found_early() -> None:
    file = many_tables([100 + n % 1500 for n in range(65536)])
    with pytest.raises(ImageCorrupt, match="overlap"):
        file.check()
    assert file.served < 3 * MIB


def test_what_lies_between_tables_is_not_read_for_ever() -> None:
    """Scatter the tables of each 16384 directory entries over the file: only a few gaps are read."""
    length = 64 * MIB
    places = [(n % 16384) * 8 + n // 16384 * 2 + 2 for n in range(16384 * 4)]
    file = many_tables(places)
    head = corpus.vmdk_header(capacity=len(places) * 128, directory=128, entries=1)
    file.parts = {0: head + file.parts[0][512:], length - 1: b"\0"}
    file.length = length
    # Without the bound: four passes over the whole file.
    assert file.fate() is not None or file.served < 3 * length


def test_large_clusters_have_tables_of_more_than_a_piece() -> None:
    """Use clusters of 2 MiB: one L2 table of 2 MiB maps 512 GiB."""
    cluster = 2 * MIB
    number = 200_000
    disk = (number + 1) * cluster
    file = File.of(corpus.qcow2(cluster_bits=21, size=disk, clusters=4), 6 * cluster)
    content = put(file.parts[0], 3 * cluster, struct.pack(">Q", 1 << 63 | 4 * cluster))
    file.parts = {0: content, 4 * cluster + 8 * number: struct.pack(">Q", 1 << 63 | 5 * cluster)}
    assert file.fate() is None
    file.length -= 1
    with pytest.raises(ContentTruncated, match=f"disk offset {number * cluster:#x} "):
        file.check()


# --- compressed data --------------------------------------------------------------------------------------------


def test_a_compressed_cluster_must_inflate_from_what_is_there() -> None:
    clusters = {0: (random.Random(1).randbytes(4096), False), 9: (b"abcdefgh" * 512, True)}
    content = write(Layout(20 * 4096, 12, clusters, set(), ["l1", ("l2", 0), ("data", 0), ("data", 9)]))
    assert File.of(content).fate() is None
    end = len(content.rstrip(b"\0"))
    fates = [File.of(content[:length]).fate() for length in range(end - 12, end + 1)]
    assert fates[-1] is None
    assert fates[0] is ContentTruncated
    # Only the end marker of the compressed data and bytes after the cluster's last one are optional.
    turn = fates.index(None)
    assert set(fates[:turn]) == {ContentTruncated}
    assert set(fates[turn:]) == {None}


def stream_vmdk(size: int, *, marker: bool = True) -> bytes:
    """Return two compressed grains; the later one in the file is first on the disk and declares `size` bytes."""
    flags = 0x30001 if marker else 0x10001
    text = corpus.vmdk_descriptor(kind="streamOptimized")
    content = corpus.vmdk(text, flags=flags, compression=1, version=3)
    content = put(content, 26 * SECTOR, struct.pack("<I", 27))
    content = put(content, 27 * SECTOR, struct.pack("<II", 140, 130))
    for place, length in ((130, 700), (140, size)):
        content = put(content, place * SECTOR, struct.pack("<QI", 0, length))
    return content


def test_a_compressed_grain_is_as_long_as_its_marker_says() -> None:
    content = stream_vmdk(1000)
    assert File.of(content, 140 * SECTOR + 1012).fate() is None
    for length in (140 * SECTOR + 1011, 140 * SECTOR + 12, 140 * SECTOR + 11, 140 * SECTOR, 131 * SECTOR):
        with pytest.raises(ContentTruncated, match="disk offset 0x0 "):
            File.of(content, length).check()


def test_without_markers_a_grain_is_where_it_begins() -> None:
    content = stream_vmdk(1000, marker=False)
    assert File.of(content, 140 * SECTOR + 1).fate() is None
    assert File.of(content, 140 * SECTOR).fate() is ContentTruncated


def test_the_footer_has_the_place_of_the_directory() -> None:
    content = corpus.vmdk_stream()
    assert File.of(content).fate() is None
    moved = content.index(struct.pack("<QII", 1, 0, 2)) + SECTOR
    spoilt = put(content, moved, struct.pack("<I", 5000))
    with pytest.raises(ContentTruncated, match="grain table 0"):
        File.of(spoilt).check()
