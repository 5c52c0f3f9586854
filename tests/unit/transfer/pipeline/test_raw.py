"""Tests of raw images, read in ranges and as a stream."""

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import Interrupted, SourceNotFound, TargetFull, TargetTooSmall
from cdi.transfer.pipeline import ranged
from cdi.transfer.pipeline import raw as module
from cdi.transfer.pipeline.raw import RawRanged, raw_stream
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark
from cdi.verify.hashing import ResumableHash
from tests.memory import MemorySource, MemoryTarget, control_of

MIB = 1 << 20


def content(size, seed=0):
    """Return data and zeros in runs of various lengths."""
    rng, out = random.Random(seed), bytearray()
    while len(out) < size:
        run = rng.choice((1, 511, 512, 4095, 4096, 5000, 65536))
        out += bytes(run) if rng.random() < 0.5 else rng.randbytes(run)
    return bytes(out[:size])


def chunked(data, sizes):
    at, sizes = 0, iter(sizes)
    while at < len(data):
        size = next(sizes, 10_000)
        yield memoryview(data)[at : at + size]
        at += size


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 70_000),
    st.lists(st.integers(1, 20_000), max_size=30),
    st.booleans(),
    st.sampled_from([4096, 8192, 1 << 20]),
    st.booleans(),
)
def test_any_cutting_of_a_stream_gives_the_disk(size, sizes, clean, block, growing):
    data = content(size, size)
    target = MemoryTarget(0 if growing else size, reads_zero=clean)
    before, module._BLOCK = module._BLOCK, block
    try:
        grow = target.resize if growing else None
        assert raw_stream(chunked(data, sizes), target, limit=size, grow=grow) == size
    finally:
        module._BLOCK = before
    assert bytes(target.disk) == data


def test_zeros_are_not_written_where_they_are_there_already():
    data = bytes(MIB) + b"x" * 4096 + bytes(MIB)
    target = MemoryTarget(len(data))
    raw_stream(chunked(data, []), target, limit=len(data))
    assert target.written == 4096


@settings(deadline=None, max_examples=60)
@given(
    st.builds(lambda blocks, more: blocks * 4096 + more, st.integers(0, 9), st.integers(0, 1100)),
    st.integers(0, 600),
    st.lists(st.integers(1, 9000), max_size=30),
    st.booleans(),
)
def test_the_trimmer_sees_the_end_and_its_bytes_are_not_written(size, footer, sizes, clean):
    """This holds for any chunking, and wherever the footer lies in the blocks, also across two of them."""
    footer = min(footer, size, 512)
    data = content(size, size + 1)
    seen = []

    def trim(tail, total):
        seen.append((bytes(tail[-512:]), total))
        return footer

    target = MemoryTarget(size, reads_zero=clean)
    dirt = bytes(target.disk)
    before, module._BLOCK = module._BLOCK, 4096
    try:
        assert raw_stream(chunked(data, sizes), target, limit=size, trim=trim) == size - footer
    finally:
        module._BLOCK = before
    assert seen == [(data[-512:], size)]
    assert bytes(target.disk) == data[: size - footer] + dirt[size - footer :]


def test_more_than_there_is_room_for_is_told_before_it_is_written():
    target = MemoryTarget(8192)
    with pytest.raises(TargetTooSmall):
        raw_stream(chunked(b"x" * 8193, []), target, limit=8192)
    raw_stream(chunked(b"x" * 8192, []), target, limit=8192)


def test_an_endless_stream_ends_at_the_limit():
    def endless():
        while True:
            yield memoryview(bytes(MIB))

    with pytest.raises(TargetTooSmall):
        raw_stream(endless(), MemoryTarget(16 * MIB), limit=16 * MIB)


class Full(MemoryTarget):
    def write(self, view, offset):
        raise TargetFull("no space left")


def test_a_full_target_ends_a_stream():
    with pytest.raises(TargetFull):
        raw_stream(chunked(b"x" * (30 * MIB), [MIB] * 30), Full(30 * MIB), limit=30 * MIB)


def test_a_source_that_fails_ends_a_stream_with_its_own_error():
    def broken():
        yield memoryview(b"x" * (3 * MIB))
        raise SourceNotFound("gone")

    with pytest.raises(SourceNotFound):
        raw_stream(broken(), MemoryTarget(30 * MIB), limit=30 * MIB)


def ranged_import(data, target, *, begin=0, connections=3, digest=None, payload=None, faults=(), cancelled=None):
    control = control_of(cancelled=cancelled, retries=0)
    source = MemorySource(data, faults=faults, most=100_000)
    fetcher = ResumingReader(source, control)
    watermark = Watermark(begin, digest, control.meter, control.cancelled, None)
    payload = len(data) if payload is None else payload
    RawRanged(len(data), payload).transfer(fetcher, target, watermark, connections)
    return source, watermark


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 200_000), st.integers(1, 5), st.booleans(), st.integers(0, 600), st.integers(0, 8))
def test_ranges_give_the_disk_and_the_digest(size, connections, clean, footer, begun):
    data = content(size, size)
    footer, begin = min(size, footer), min(size, begun * 16384)
    target = MemoryTarget(size - footer, reads_zero=clean)
    dirt = bytes(target.disk)
    digest = ResumableHash("sha256")
    digest.update(data[:begin])
    before, ranged.CHUNK_SIZE = ranged.CHUNK_SIZE, 16384
    try:
        source, watermark = ranged_import(
            data, target, begin=begin, connections=connections, digest=digest, payload=size - footer
        )
    finally:
        ranged.CHUNK_SIZE = before
    disk = data[: size - footer]
    assert bytes(target.disk) == dirt[:begin] + disk[begin:]
    whole = ResumableHash("sha256")
    whole.update(data)
    assert digest.digest() == whole.digest()
    assert watermark.value == size
    # Nothing that an earlier attempt completed is requested again.
    assert all(offset >= begin for offset, _ in source.opened)


def test_the_failure_is_the_cause_not_those_that_were_only_told_to_stop(monkeypatch):
    monkeypatch.setattr(ranged, "CHUNK_SIZE", 4096)
    data = content(400_000)

    def gone(_given):
        raise SourceNotFound("gone")

    for place in range(6):
        faults = [None] * place + [gone]
        with pytest.raises(SourceNotFound):
            ranged_import(data, MemoryTarget(len(data)), faults=faults, digest=ResumableHash("md5"))
    with pytest.raises(TargetFull):
        ranged_import(data, Full(len(data)), digest=ResumableHash("md5"))


def test_a_cancelled_transfer_is_interrupted():
    cancelled = threading.Event()

    def cancel(given):
        cancelled.set()

    with pytest.raises(Interrupted):
        ranged_import(content(9 * MIB), MemoryTarget(9 * MIB), faults=[None, cancel], cancelled=cancelled)


def test_a_defect_of_a_handler_ends_the_others():
    data = bytes(64 * 4096)
    control = control_of()
    cancelled, meter = control.cancelled, control.meter
    fetcher = ResumingReader(MemorySource(data), control)

    def handlers():
        def handle(piece, view):
            if piece.start == 5 * 4096:
                # The pieces before it are cancelled by the failure as well, so wait for them first.
                while watermark.value < 5 * 4096:
                    time.sleep(0.001)
                raise ZeroDivisionError

        return handle

    def cut(begin, size):
        return (module.FileChunk(at, at + 4096, at + 4096, 0, 0) for at in range(begin, len(data), 4096))

    watermark = Watermark(0, ResumableHash("md5"), meter, cancelled, None)
    with pytest.raises(ZeroDivisionError):
        ranged.run_ranged(fetcher, cut, watermark, handlers, connections=4, overhead_bytes=0)
    assert watermark.value == 5 * 4096
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("range")] == []


def test_memory_is_aligned_like_the_file():
    from cdi.target.base import ALIGNMENT

    data = content(100_000)
    control = control_of()
    fetcher = ResumingReader(MemorySource(data), control)
    seen = []

    def address(view):
        import ctypes

        return ctypes.addressof(ctypes.c_char.from_buffer(view))

    def handlers():
        def handle(piece, view):
            seen.append(address(view) % ALIGNMENT == piece.start % ALIGNMENT)
            assert bytes(view) == data[piece.start : piece.fetch]

        return handle

    cut = [module.FileChunk(at, at + 700, min(len(data), at + 900), 0, 0) for at in range(0, 90_000, 700)]
    watermark = Watermark(0, None, ProgressMeter(), control.cancelled, None)
    ranged.run_ranged(fetcher, lambda begin, size: iter(cut), watermark, handlers, connections=2, overhead_bytes=0)
    assert len(seen) == len(cut) and all(seen)
