"""Tests that spilled data is returned, from memory and from scratch space."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import ScratchNeeded
from cdi.transfer.pipeline.spill import SpillBuffer

DATA = random.Random(8).randbytes(4000)
RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 200)), max_size=25)


def placed(runs):
    """Return (start, stop) pairs in ascending order, some adjacent."""
    at, found = 0, []
    for gap, size in runs:
        start = at + (gap if gap > 20 else 0)
        if start + size > len(DATA):
            break
        found.append((start, start + size))
        at = start + size
    return found


@given(RUNS, st.integers(0, 1500), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 900)), max_size=15))
def test_any_pattern_of_adding_and_reading(tmp_path_factory, runs, limit, reads):
    runs = placed(runs)
    spill = SpillBuffer(str(tmp_path_factory.getbasetemp()), limit)
    try:
        held = bytearray(len(DATA) + 1000)
        for start, stop in runs:
            spill.add(start, memoryview(DATA)[start:stop])
            held[start:stop] = b"\1" * (stop - start)
        for offset, size in reads:
            end = offset
            while end < offset + size and held[end]:
                end += 1
            assert spill.read(offset, size) == DATA[offset:end]
        assert len(spill._memory) <= limit
        assert len(spill._memory) + spill.scratch == sum(stop - start for start, stop in runs)
    finally:
        spill.close()


def test_beyond_memory_without_scratch_is_told():
    spill = SpillBuffer(None, 100)
    spill.add(0, memoryview(bytes(100)))
    with pytest.raises(ScratchNeeded):
        spill.add(100, memoryview(b"x"))
    assert spill.read(0, 200) == bytes(100)


def test_scratch_has_no_name_and_is_given_back(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    spill = SpillBuffer(str(tmp_path), 0)
    spill.add(5, memoryview(DATA)[:1000])
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert spill.read(5, 1000) == DATA[:1000]
    spill.close()
    spill.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_very_many_tiny_runs_cost_little_memory(tmp_path):
    import tracemalloc

    tracemalloc.start()
    try:
        spill = SpillBuffer(str(tmp_path), 1000)
        for number in range(20_000):
            spill.add(number * 3, memoryview(b"x"))
        assert tracemalloc.get_traced_memory()[0] < 40 * 20_000
    finally:
        tracemalloc.stop()
    assert spill.read(59_997, 10) == b"x"
    spill.close()
