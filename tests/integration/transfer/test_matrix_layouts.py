"""Tests that a streamed qcow2 gives its disk for any layout of its file and any position of the stream's windows.

The windows are small, so that tables, data and the sectors that clusters share are in different ones.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdi.image import qcow2_map
from cdi.image.formats.qcow2 import parse_header
from cdi.image.qcow2_map import Qcow2MapBuilder
from cdi.transfer.pipeline import spill, windows
from cdi.transfer.pipeline.mapped_stream import MappedDecoder
from tests.memory import MemoryTarget
from tests.qcow2_writer import Layout, disk_of, write


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(qcow2_map, "RUN_LIMIT", 2048)
    monkeypatch.setattr(windows, "MIN_CARRY", 2048)
    monkeypatch.setattr(windows, "WINDOW_SIZE", 1024)


def cluster_of(seed, cluster, packed):
    dice = random.Random(seed)
    if not packed:
        return dice.randbytes(cluster)
    # When compressed, from a few bytes to most of the cluster.
    noise = dice.randbytes(dice.choice([1, 3, 20, 100, cluster // 4, cluster // 2]))
    return (noise * (cluster // len(noise) + 1))[:cluster]


@st.composite
def layouts(draw):
    bits = draw(st.sampled_from([9, 10, 12]))
    cluster, entries = 1 << bits, 1 << (bits - 3)
    total = draw(st.sampled_from([1, entries, 2 * entries + 3, min(400, 6 * entries)]))
    packed = draw(st.sampled_from([0, 0.5, 0.9, 1]))
    dice = random.Random(draw(st.integers(0, 1 << 30)))
    guests = sorted(dice.sample(range(total), draw(st.integers(1, total))))
    clusters = {}
    for guest in guests:
        pack = dice.random() < packed
        clusters[guest] = (cluster_of(guest, cluster, pack), pack)
    tables = sorted({guest // entries for guest in guests})
    # Converters write tables and data near their usual offsets, but not in order.
    reach = draw(st.sampled_from([0, 2, 8, 1000]))
    placed = [(guest - dice.randrange(reach + 1), ("data", guest)) for guest in guests]
    placed += [(table * entries + dice.randrange(-reach, reach + 1), ("l2", table)) for table in tables]
    late = draw(st.sampled_from(["first", "last"]))
    order = [item for _, item in sorted(placed, key=lambda pair: pair[0])]
    return Layout(
        total * cluster - draw(st.sampled_from([0, cluster - 512])), bits, clusters, set(),
        ["l1", *order] if late == "first" else [*order, "l1"],
    )  # fmt: skip


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts(), st.booleans(), st.integers(1, 5000))
def test_any_layout_and_any_window_gives_the_disk(small_windows, layout, clean, size):
    data = write(layout)
    target = MemoryTarget(layout.virtual_size, reads_zero=clean)
    pieces = (memoryview(data)[at : at + size] for at in range(0, len(data), size))
    MappedDecoder(Qcow2MapBuilder(parse_header(data, None), None), target, None).run(pieces)
    assert bytes(target.disk) == disk_of(layout)


def test_a_small_cluster_in_the_sector_of_its_neighbours_is_found_when_its_table_comes_late(small_windows):
    """Three clusters share a sector; the table of the middle one follows several windows later."""
    data = [bytes([n]) * 512 for n in range(3)]
    layout = Layout(
        130 * 512, 9, {0: (data[0], True), 70: (data[1], True), 1: (data[2], True), 2: (bytes(512), False)}, set(),
        ["l1", ("l2", 0), ("data", 0), ("data", 70), ("data", 1), ("data", 2), ("junk", 20_000), ("l2", 1)],
    )  # fmt: skip
    target = MemoryTarget(layout.virtual_size)
    image = write(layout)
    MappedDecoder(Qcow2MapBuilder(parse_header(image, None), None), target, None).run(iter([image]))
    assert bytes(target.disk) == disk_of(layout)


def test_the_small_runs_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(spill, "MAX_SMALL_RUNS", 10)
    kept = spill.SpillBuffer(None)
    for n in range(95):
        kept.add_small(n * 100, memoryview(bytes([n]) * 10))
        assert len(kept._small_runs) < 20
    assert kept.read(9405, 100) == bytes([94]) * 5
    assert kept.read(0, 10) == b""
    # Runs follow one another, small ones and others.
    kept.add(9410, memoryview(b"after"))
    assert kept.read(9405, 100) == bytes([94]) * 5 + b"after"
