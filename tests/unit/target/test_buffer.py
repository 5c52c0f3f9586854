from __future__ import annotations

import ctypes
import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.target.base import ALIGNMENT
from cdi.target.buffer import ZERO_GRANULARITY, aligned_buffer, data_runs, is_aligned, is_zero


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1 << 20, 2 << 20, (4 << 20) + 4096])
def test_a_buffer_is_zeroed_aligned_and_of_its_size(size):
    buffer = aligned_buffer(size)
    assert len(buffer) == size
    assert is_zero(buffer)
    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % ALIGNMENT == 0
    assert is_aligned(buffer)
    assert is_aligned(buffer[1:]) is False


def test_a_large_buffer_can_have_huge_pages():
    assert is_aligned(aligned_buffer((4 << 20) + 4096), 2 << 20)


def test_a_kernel_may_have_no_huge_pages(monkeypatch):
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 1 << 20)
    with pytest.raises(OSError):
        mmap.mmap(-1, 4096).madvise(mmap.MADV_HUGEPAGE)
    assert is_zero(aligned_buffer(4 << 20))


def test_a_buffer_needs_a_size():
    with pytest.raises(ValueError):
        aligned_buffer(0)


def test_read_only_memory_counts_as_unaligned():
    assert not is_aligned(memoryview(bytes(8192)))
    assert not is_aligned(aligned_buffer(4096)[:0])


def test_zero_is_seen_beyond_a_mebibyte():
    buffer = bytearray(3 << 20)
    assert is_zero(memoryview(buffer))
    buffer[-1] = 1
    assert not is_zero(memoryview(buffer))
    assert is_zero(memoryview(b""))


blocks = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=12)


@settings(deadline=None)
@given(
    places=blocks,
    tail=st.integers(0, ALIGNMENT - 1),
    granularity=st.sampled_from([4096, 16384, ZERO_GRANULARITY]),
    last=st.booleans(),
)
def test_runs_cover_what_is_not_zero_and_no_zero_blocks_at_their_ends(places, tail, granularity, last):
    raw = bytearray(43 * ALIGNMENT + tail)
    for at, count in places:
        for block in range(at, at + count):
            raw[block * ALIGNMENT + 77] = 1
    if last and raw:
        raw[-1] = 1
    view = memoryview(raw)
    runs = list(data_runs(view, granularity))
    edges = [0, *(edge for run in runs for edge in run), len(raw)]
    assert edges == sorted(edges)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        assert not any(raw[start:stop])
    for start, stop in runs:
        assert start % ALIGNMENT == 0
        assert stop % ALIGNMENT == 0 or stop == len(raw)
        assert any(raw[start : start + ALIGNMENT])
        assert any(raw[(stop - 1) // ALIGNMENT * ALIGNMENT : stop])
    for at in range(0, len(raw), granularity):
        if not any(raw[at : at + granularity]):
            assert not any(start < at + granularity and at < stop for start, stop in runs)


def test_an_empty_view_has_no_runs():
    assert list(data_runs(memoryview(b""))) == []
