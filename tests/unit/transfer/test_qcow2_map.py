"""Tests of a qcow2 file's map and of its division into pieces, including maps that no writer would make."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import ContentTruncated, ImageCorrupt
from cdi.image.block_map import RUN_LIMIT, TABLE_LIMIT, BlockMap, Encoding, MapTooLarge, TableRange, pieces
from cdi.image.formats.qcow2 import EXTENDED_L2, parse_header
from cdi.image.qcow2_map import Qcow2MapBuilder
from tests.qcow2_writer import COMPRESSED, COPIED, Layout, write

CLUSTER = 512
LENGTH = 20_000
HEADER = parse_header(write(Layout(1 << 20, 9))[:4096], None)
HOSTS = st.integers(0, LENGTH // CLUSTER - 1).map(lambda number: number * CLUSTER)


@st.composite
def maps(draw):
    """Draw plain runs and compressed clusters at any place, overlapping as well."""
    image = BlockMap("qcow2", HEADER.virtual_size, LENGTH, CLUSTER)
    guest = 0
    for compressed in draw(st.lists(st.booleans(), max_size=15)):
        if compressed:
            host, size = draw(st.integers(0, LENGTH - 1)), draw(st.integers(1, 2 * CLUSTER))
            length = CLUSTER
        else:
            host, length = draw(HOSTS), CLUSTER * draw(st.integers(1, 8))
            size = length
        image.append(host, size, guest, Encoding.DEFLATE if compressed else Encoding.STORED)
        guest += length
    image.sort_by_host_offset()
    return image


CUT = st.tuples(st.integers(100, 8_000), st.integers(0, 9_000), st.integers(0, LENGTH))
"""Size of the pieces, longest gap, and start, in bytes."""


@settings(max_examples=80, deadline=None)
@given(maps(), st.booleans(), CUT)
def test_every_extent_from_the_beginning_on_lies_in_just_one_piece(image, whole, cut_as):
    size, gap, begin = cut_as
    cut = list(pieces(image, LENGTH, begin=begin, size=size, whole=whole, gap=gap))
    seen = [position for piece in cut for position in range(piece.first, piece.last)]
    assert seen == [position for position in range(len(image)) if image.hosts[position] >= begin]
    before = begin
    for piece in cut:
        assert before <= piece.start < piece.stop <= piece.fetch <= LENGTH
        before = piece.stop
        for position in range(piece.first, piece.last):
            extent = image.extent(position)
            assert piece.start <= extent.host < piece.stop
            assert min(LENGTH, extent.host + extent.size) <= piece.fetch
        # Everything in later pieces lies at or after this piece's end, so the end is a watermark.
        assert all(host >= piece.stop for host in image.hosts[piece.last :])
        # A buffer is at most the requested size and one extent.
        assert piece.fetch - piece.start <= size + max([0, *image.sizes])


@settings(max_examples=40, deadline=None)
@given(maps(), CUT)
def test_whole_means_every_byte_once(image, cut_as):
    size, gap, begin = cut_as
    cut = list(pieces(image, LENGTH, begin=begin, size=size, whole=True, gap=gap))
    assert [piece.start for piece in cut] == [begin, *(piece.stop for piece in cut)][: len(cut)]
    assert (cut[-1].stop if cut else begin) == LENGTH


@settings(max_examples=40, deadline=None)
@given(maps(), CUT)
def test_otherwise_long_runs_without_data_are_left_out(image, cut_as):
    size, gap, begin = cut_as
    covered = bytearray(LENGTH)
    for position in range(len(image)):
        extent = image.extent(position)
        if extent.host >= begin:
            stop = min(LENGTH, extent.host + extent.size)
            covered[extent.host : stop] = b"\1" * (stop - extent.host)
    for piece in pieces(image, LENGTH, begin=begin, size=size, whole=False, gap=gap):
        runs = bytes(covered[piece.start : piece.fetch]).split(b"\1")
        assert max(map(len, runs)) <= max(gap, size)
        assert covered[piece.fetch - 1]


@settings(max_examples=40, deadline=None)
@given(maps(), st.booleans(), st.data(), CUT)
def test_going_on_at_any_watermark_leaves_nothing_out_and_does_nothing_twice(image, whole, data, cut_as):
    size, gap, begin = cut_as
    cut = list(pieces(image, LENGTH, begin=0, size=size, whole=whole, gap=gap))
    if not cut:
        return
    at = data.draw(st.integers(0, len(cut) - 1))
    done = [position for piece in cut[: at + 1] for position in range(piece.first, piece.last)]
    # The rest may be divided with another piece size.
    rest = pieces(image, LENGTH, begin=cut[at].stop, size=begin + 100, whole=whole, gap=gap)
    done += [position for piece in rest for position in range(piece.first, piece.last)]
    assert done == list(range(len(image)))


ENTRY = st.one_of(
    st.just(0),
    st.just(1),
    st.integers(0, (1 << 64) - 1),
    HOSTS.map(lambda host: host | COPIED),
    st.integers(0, LENGTH * 2).map(lambda host: host | COMPRESSED),
    HOSTS.map(lambda host: host | 1),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ENTRY, max_size=64), st.integers(0, 40), st.sampled_from([None, LENGTH, 512, LENGTH + 100]))
def test_any_table_is_extents_within_the_disk_or_an_error(entries, index, length):
    header = replace(HEADER, virtual_size=(1 << 20) - 512 * 5 - 100)
    builder = Qcow2MapBuilder(header, length)
    image = builder.map
    table = struct.pack(">64Q", *entries, *[0] * (64 - len(entries)))
    try:
        more, found = builder.feed(TableRange(0, CLUSTER, index), table)
    except (ContentTruncated, ImageCorrupt):
        return
    builder.finish()
    assert more == []
    assert found == range(len(image))
    spans = sorted((extent.guest, extent.guest + extent.length) for extent in map(image.extent, found))
    base = index * builder.l2_coverage
    for (start, stop), after in zip(spans, [*spans, None][1:], strict=True):
        assert base <= start < stop <= min(base + builder.l2_coverage, header.virtual_size)
        assert after is None or stop <= after[0]
    for extent in map(image.extent, found):
        assert extent.size <= (2 * CLUSTER if extent.encoding is Encoding.DEFLATE else RUN_LIMIT)
        if length is not None:
            assert extent.host < length
    # Data and holes cover the whole disk.
    holes = list(image.holes())
    total = sum(size for _, size in holes) + sum(stop - start for start, stop in spans)
    assert total == header.virtual_size
    assert image.data_bytes() >= sum(stop - start for start, stop in spans)


def test_neighbours_on_both_sides_are_one_extent_up_to_a_limit():
    header = replace(HEADER, virtual_size=1 << 30, cluster_bits=16)
    builder = Qcow2MapBuilder(header, None)
    image = builder.map
    entries = [COPIED | (1 << 16) * (number + 5) for number in range(100)]
    builder.feed(TableRange(0, 1 << 16, 0), struct.pack(">8192Q", *entries, *[0] * 8092))
    assert [extent.length for extent in map(image.extent, range(len(image)))] == [1 << 20] * 6 + [1 << 18]


def test_too_many_tables_are_told():
    builder = Qcow2MapBuilder(replace(HEADER, virtual_size=1 << 50), None)
    table = TableRange(0, 8 * TABLE_LIMIT, -1)
    l1 = struct.pack(f">{TABLE_LIMIT + 1}Q", *range(512, 512 * (TABLE_LIMIT + 2), 512))
    assert len(builder.feed(table, l1[:-8])[0]) == TABLE_LIMIT
    with pytest.raises(MapTooLarge):
        builder.feed(table, l1)


def test_a_disk_that_its_l1_does_not_reach_is_corrupt():
    builder = Qcow2MapBuilder(replace(HEADER, virtual_size=1 << 30, l1_entries=3), None)
    with pytest.raises(ImageCorrupt):
        builder.begin()


def test_version_2_knows_no_zero_flag():
    table = struct.pack(">64Q", COPIED | 0x400 | 1, *[0] * 63)
    for version, count in ((2, 1), (3, 0)):
        builder = Qcow2MapBuilder(replace(HEADER, version=version), LENGTH)
        assert len(builder.feed(TableRange(0, CLUSTER, 0), table)[1]) == count


@pytest.mark.parametrize(
    ("entry", "bitmap", "message"),
    [
        (COPIED | 1 << 14, 1 << 32 | 1, "subclusters of disk offset 0x4000 are both allocated and zero"),
        (0, 1, "subclusters of disk offset 0x4000 are allocated without a cluster"),
        (COPIED | 1 << 14 | 512, 1 << 31, "not aligned"),
        (COPIED | 1 << 40, 1 << 31, "stored at bytes 1099511643648"),
    ],
)
def test_a_bitmap_of_subclusters_that_lies_is_refused_by_name(entry, bitmap, message):
    header = replace(HEADER, virtual_size=1 << 20, cluster_bits=14, incompatible=EXTENDED_L2)
    table = struct.pack(">4Q2044x", 0, 0, entry, bitmap).ljust(1 << 14, b"\0")
    builder = Qcow2MapBuilder(header, 1 << 20)
    with pytest.raises(ImageCorrupt, match=message):
        builder.feed(TableRange(0, 1 << 14, 0), table)


def test_runs_of_subclusters_are_one_extent_and_none_is_past_the_disk():
    header = replace(HEADER, virtual_size=(1 << 14) + 1024, cluster_bits=14, incompatible=EXTENDED_L2)
    table = struct.pack(">4Q", COPIED | 1 << 14, 0xFF00_00FF, COPIED | 1 << 15, 0xF000_0007).ljust(1 << 14, b"\0")
    builder = Qcow2MapBuilder(header, None)
    builder.feed(TableRange(0, 1 << 14, 0), table)
    image = builder.map
    found = [(extent.host, extent.guest, extent.length) for extent in map(image.extent, range(len(image)))]
    assert found == [(1 << 14, 0, 4096), (7 << 12, 3 << 12, 4096 + 1024)]
    assert list(image.holes()) == [(4096, 8192)]
