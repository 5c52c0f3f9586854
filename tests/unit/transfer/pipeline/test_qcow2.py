"""Tests of the ranged and the streamed reader of qcow2, against the disk that the test's own writer wrote."""

import random
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import CdiError, ContentTruncated, ImageCorrupt, ScratchNeeded
from cdi.image.block_map import EXTENT_LIMIT, MapTooLarge, TableRange, pieces
from cdi.image.formats.qcow2 import parse_header
from cdi.image.qcow2_map import Qcow2MapBuilder
from cdi.transfer.pipeline import windows
from cdi.transfer.pipeline.mapped_ranged import MappedRanged, load_map
from cdi.transfer.pipeline.mapped_stream import MappedDecoder
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark
from tests.memory import MemorySource, MemoryTarget, control_of
from tests.qcow2_writer import Layout, disk_of, write


def body(kind, size, seed):
    rng = random.Random(seed)
    if kind == "noise":
        return rng.randbytes(size)
    if kind == "text":
        return (b"%08x" % rng.getrandbits(32)) * (size // 8)
    return bytes(size)


@st.composite
def layouts(draw):
    bits = draw(st.sampled_from([9, 12, 16]))
    cluster = 1 << bits
    total = draw(st.integers(1, 200))
    virtual = max(512, total * cluster - draw(st.sampled_from([0, 512, cluster // 2 // 512 * 512])))
    guests = draw(st.lists(st.integers(0, -(-virtual // cluster) - 1), unique=True, max_size=40))
    clusters = {
        guest: (body(draw(st.sampled_from(["noise", "text", "zero"])), cluster, guest), draw(st.booleans()))
        for guest in guests
    }
    for guest, (data, packed) in list(clusters.items()):
        # Noise does not compress, and its compressed form would exceed the entry's sector count.
        clusters[guest] = (data, packed and len(set(data[:256])) < 64)
    zeros = set(draw(st.lists(st.integers(0, -(-virtual // cluster) - 1), max_size=10))) - set(clusters)
    entries = cluster // 8
    tables = {guest // entries for guest in set(clusters) | zeros}
    items = ["l1", *(("l2", t) for t in tables), *(("data", g) for g in clusters)]
    items += [("junk", draw(st.integers(1, 3 * cluster))) for _ in range(draw(st.integers(0, 3)))]
    order = draw(st.permutations(items))
    return Layout(virtual, bits, clusters, zeros, list(order))


def fetcher_of(source, **policy):
    return ResumingReader(source, control_of(jitter=0, **policy))


def import_ranged(data, target, *, whole, begin=0, connections=2):
    fetcher = fetcher_of(MemorySource(data))
    image = load_map(fetcher, Qcow2MapBuilder(parse_header(data[: 64 << 10], len(data)), len(data)), 2)
    watermark = Watermark(begin, None, ProgressMeter(), threading.Event(), None)
    MappedRanged(image, len(data), whole=whole).transfer(fetcher, target, watermark, connections)
    return fetcher.source


def chunked(data, sizes):
    position = 0
    sizes = iter(sizes)
    while position < len(data):
        size = next(sizes, 65536)
        yield memoryview(data)[position : position + size]
        position += size


@settings(deadline=None, max_examples=60)
@given(layouts(), st.booleans(), st.booleans())
def test_ranged_gives_the_disk(layout, whole, clean):
    data = write(layout)
    target = MemoryTarget(layout.virtual_size, reads_zero=clean)
    import_ranged(data, target, whole=whole)
    assert bytes(target.disk) == disk_of(layout)


@settings(deadline=None, max_examples=80)
@given(layouts(), st.lists(st.integers(1, 9000), max_size=50), st.booleans(), st.sampled_from([4096, 20000, 4 << 20]))
def test_any_chunking_and_layout_gives_the_disk(layout, sizes, clean, window):
    data = write(layout)
    target = MemoryTarget(layout.virtual_size, reads_zero=clean)
    before, windows.WINDOW_SIZE = windows.WINDOW_SIZE, window
    try:
        MappedDecoder(Qcow2MapBuilder(parse_header(data[: 64 << 10], None), None), target, None).run(
            chunked(data, sizes)
        )
    finally:
        windows.WINDOW_SIZE = before
    assert bytes(target.disk) == disk_of(layout)


@settings(deadline=None, max_examples=60)
@given(layouts(), st.integers(1, 20), st.data())
def test_pieces_hold_every_extent_once_and_stop_is_a_watermark(layout, size, data):
    raw = write(layout)
    image = load_map(
        fetcher_of(MemorySource(raw)), Qcow2MapBuilder(parse_header(raw[: 64 << 10], len(raw)), len(raw)), 1
    )
    size *= 1 << layout.cluster_bits
    for whole in (True, False):
        cut = list(pieces(image, len(raw), begin=0, size=size, whole=whole, gap=4096))
        seen = [position for piece in cut for position in range(piece.first, piece.last)]
        assert seen == list(range(len(image)))
        for piece in cut:
            assert piece.start < piece.stop <= piece.fetch <= len(raw)
            for position in range(piece.first, piece.last):
                extent = image.extent(position)
                assert piece.start <= extent.host < piece.stop
                assert min(len(raw), extent.host + extent.size) <= piece.fetch
        if whole:
            assert [p.start for p in cut] == [0, *[p.stop for p in cut[:-1]]]
            assert cut[-1].stop == len(raw)
    if cut:
        begin = data.draw(st.sampled_from(cut)).stop
        rest = pieces(image, len(raw), begin=begin, size=size, whole=True)
        again = [position for piece in rest for position in range(piece.first, piece.last)]
        assert again == [position for position in range(len(image)) if image.hosts[position] >= begin]


@settings(deadline=None, max_examples=30)
@given(layouts(), st.data())
def test_a_cut_stream_is_told(layout, data):
    raw = write(layout)
    cut = data.draw(st.integers(112, len(raw) - 1))
    target = MemoryTarget(layout.virtual_size)
    try:
        MappedDecoder(Qcow2MapBuilder(parse_header(raw[:112] + bytes(200), None), None), target, None).run(
            chunked(raw[:cut], [])
        )
    except CdiError:
        return
    # The part that was cut off holds nothing that the disk needs: padding, junk, or zeros.
    assert bytes(target.disk) == disk_of(layout)


def test_data_before_its_tables_beyond_memory_needs_scratch(tmp_path, monkeypatch):
    clusters = {guest: (body("noise", 4096, guest), False) for guest in range(1000)}
    layout = Layout(1000 * 4096, 12, clusters, set(), [("data", guest) for guest in range(1000)])
    data = write(layout)
    monkeypatch.setattr(windows, "WINDOW_SIZE", 8192)
    monkeypatch.setattr("cdi.transfer.pipeline.spill.SpillBuffer.__init__.__defaults__", (64 << 10,))
    with pytest.raises(ScratchNeeded):
        MappedDecoder(
            Qcow2MapBuilder(parse_header(data[:4096], None), None), MemoryTarget(layout.virtual_size), None
        ).run(chunked(data, []))
    target = MemoryTarget(layout.virtual_size)
    reader = MappedDecoder(Qcow2MapBuilder(parse_header(data[:4096], None), None), target, str(tmp_path))
    reader.run(chunked(data, []))
    assert bytes(target.disk) == disk_of(layout)
    assert 0 < reader.scratch <= len(data)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_ends_before_its_table_is_truncated():
    layout = Layout(8 * 4096, 12, {0: (b"x" * 4096, False)}, set(), [("data", 0)])
    data = write(layout)
    with pytest.raises(ContentTruncated):
        MappedDecoder(
            Qcow2MapBuilder(parse_header(data[:4096], None), None), MemoryTarget(layout.virtual_size), None
        ).run(chunked(data[:-4096], []))


def table_of(*entries):
    import struct

    return struct.pack(">512Q", *entries, *[0] * (512 - len(entries)))


L1 = TableRange(4096, 16, -1)
L2 = TableRange(8192, 4096, 0)


@pytest.fixture
def builder():
    data = write(Layout(64 << 20, 12, {0: (b"x" * 4096, False)}))
    return Qcow2MapBuilder(parse_header(data[:4096], len(data)), len(data))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (0x1200, "not aligned"),
        (1 << 20, "truncated"),
        (1 << 62 | 1 << 20, "truncated"),
        (1 << 40, "stored at"),
        (1 << 62 | 1 << 40, "stored at"),
    ],
)
def test_an_entry_that_points_astray_is_refused(builder, entry, told):
    with pytest.raises(ContentTruncated if told == "truncated" else ImageCorrupt) as caught:
        builder.feed(L2, table_of(entry))
    assert told in str(caught.value)


def test_an_l1_entry_that_points_astray_is_refused(builder):
    for entry, told in ((0x1200, "not aligned"), (1 << 40, "L2 table 0 is stored at")):
        with pytest.raises(ImageCorrupt) as caught:
            builder.feed(L1, entry.to_bytes(8, "big") + bytes(8))
        assert told in str(caught.value)


def test_a_table_used_twice_is_refused(builder):
    with pytest.raises(ImageCorrupt) as caught:
        builder.feed(L1, (0x1000).to_bytes(8, "big") * 2)
    assert "twice" in str(caught.value)


def test_too_many_extents_are_told():
    data = write(Layout(64 << 20, 12, {0: (b"x" * 4096, False)}))
    builder = Qcow2MapBuilder(replace(parse_header(data[:4096], len(data)), virtual_size=1 << 44), None)
    table = table_of(*[((7 * n) % 1000 + 1) << 12 for n in range(512)])
    with pytest.raises(MapTooLarge):
        for index in range(EXTENT_LIMIT // 512 + 1):
            builder.feed(L2._replace(key=index), table)
