"""Tests of reading from a source that fails as scripted."""

import random
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import (
    FormatUnsupported,
    Interrupted,
    SourceChanged,
    SourceNotFound,
    SourceStalled,
    SourceTooLong,
    SourceTruncated,
    SourceUnavailable,
    SourceUnreachable,
)
from cdi.image.sizes import MAX_DISK
from cdi.transfer import reader as module
from cdi.transfer.reader import ResumingReader
from cdi.transfer.retry import RestartRequired
from tests.memory import MemorySource, control_of

DATA = random.Random(5).randbytes(300_000)


class Pauses(threading.Event):
    """An event that records the time-outs of its waits and returns at once."""

    def __init__(self):
        super().__init__()
        self.slept = []

    def wait(self, timeout=None):
        self.slept.append(timeout)
        return self.is_set()


def fetcher_of(source, *, cancelled=None, limits=None, **policy):
    cancelled = Pauses() if cancelled is None else cancelled
    fetcher = ResumingReader(source, control_of(cancelled=cancelled, limits=limits, **policy))
    fetcher.cancelled = cancelled
    return fetcher


def once_at(count, error):
    """Return a fault that is raised once the reader has returned `count` bytes."""

    def fault(given):
        if given >= count:
            raise error

    return fault


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 30_000), max_size=12),
    st.integers(100, 20_000),
    st.integers(0, 1000),
    st.integers(0, 50_000),
)
def test_goes_on_at_the_very_byte_where_it_broke(breaks, most, seed, offset):
    faults = [once_at(at, SourceUnreachable("reset")) for at in breaks]
    source = MemorySource(DATA, faults=faults, most=most, seed=seed)
    fetcher = fetcher_of(source, retries=len(breaks))
    view = memoryview(bytearray(100_000))
    fetcher.read_range_into(offset, view)
    assert bytes(view) == DATA[offset : offset + 100_000]
    assert fetcher._meter.fetched == 100_000
    # Each request begins after the last byte received, and asks for the rest.
    assert all(at + length == offset + 100_000 for at, length in source.opened)
    starts = [at for at, _ in source.opened]
    assert starts[0] == offset and starts == sorted(starts)
    assert fetcher._readers == set()


def test_only_failures_without_a_byte_of_progress_use_up_the_budget():
    def crumbs(given):
        if given:
            raise SourceStalled("nothing came")

    source = MemorySource(DATA, faults=[crumbs] * 40, most=100)
    fetcher_of(source, retries=1).read_range_into(0, memoryview(bytearray(20_000)))
    assert len(source.opened) == 41


def test_the_budget_is_the_number_of_tries_after_the_first():
    for retries in (0, 1, 3):
        source = MemorySource(DATA, faults=[once_at(0, SourceUnreachable("gone"))] * 10)
        fetcher = fetcher_of(source, retries=retries)
        with pytest.raises(SourceUnreachable):
            fetcher.read_range_into(0, memoryview(bytearray(10)))
        assert len(source.opened) == retries + 1
        assert len(fetcher.cancelled.slept) == retries


def test_pauses_grow_and_follow_the_server():
    faults = [once_at(0, SourceUnreachable("gone"))] * 6 + [once_at(0, SourceUnavailable("busy", retry_after=77.0))]
    fetcher = fetcher_of(MemorySource(DATA, faults=faults))
    fetcher.read_range_into(0, memoryview(bytearray(10)))
    slept = fetcher.cancelled.slept
    assert slept[:6] == sorted(slept[:6]) and slept[0] < 1
    assert slept[6] >= 77
    assert fetcher._meter.message == ""


def test_the_wait_is_told():
    notes = []
    fetcher = fetcher_of(MemorySource(DATA, faults=[once_at(0, SourceUnavailable("busy"))]))
    fetcher.cancelled.wait = lambda _timeout: notes.append(fetcher._meter.message)
    fetcher.read_range_into(0, memoryview(bytearray(10)))
    assert "SourceUnavailable" in notes[0] and "busy" in notes[0]


@pytest.mark.parametrize("error", [SourceNotFound("404"), SourceChanged("another"), SourceTooLong("more")])
def test_what_trying_again_does_not_mend_is_raised_at_once(error):
    source = MemorySource(DATA, faults=[once_at(0, error)])
    fetcher = fetcher_of(source)
    with pytest.raises(type(error)):
        fetcher.read_range_into(0, memoryview(bytearray(10)))
    assert fetcher.cancelled.slept == []


def test_a_run_that_ends_early_is_truncated_not_endless():
    class Ends(MemorySource):
        def open(self, offset=0, length=None):
            return super().open(offset, 0)

    with pytest.raises(SourceTruncated) as caught:
        fetcher_of(Ends(DATA), retries=2).read_range_into(7, memoryview(bytearray(10)))
    assert "byte 7" in str(caught.value) and "17" in str(caught.value)


@pytest.mark.parametrize("stated", ["length", "max_length"])
def test_what_any_source_states_of_its_length_is_bounded(stated):
    source = MemorySource(DATA, ranges=False, length=False)
    for size, fits in ((MAX_DISK, True), (MAX_DISK + 1, False), ((1 << 63) - 1, False)):
        source.facts = replace(source.facts, **{stated: size})
        if fits:
            assert getattr(fetcher_of(source).facts, stated) == size
        else:
            with pytest.raises(FormatUnsupported, match=str(size)):
                fetcher_of(source)


def test_small_reads_are_clipped_to_the_content():
    fetcher = fetcher_of(MemorySource(DATA))
    assert fetcher.read(len(DATA) - 5, 100) == DATA[-5:]
    assert fetcher.read(len(DATA) + 5, 100) == b""
    assert fetcher.read(3, 4) == DATA[3:7]


def test_probing_is_tried_again_too():
    class Shy(MemorySource):
        left = 2

        def probe(self):
            if self.left:
                self.left -= 1
                raise SourceUnavailable("busy")
            return super().probe()

    assert fetcher_of(Shy(DATA), retries=2).facts.length == len(DATA)
    with pytest.raises(SourceUnavailable):
        fetcher_of(Shy(DATA), retries=1)


@pytest.mark.parametrize("ranges", [True, False])
def test_cancelled_means_no_more_reads(ranges):
    cancelled = threading.Event()
    source = MemorySource(DATA, ranges=ranges)
    fetcher = fetcher_of(source, cancelled=cancelled)
    cancelled.set()
    with pytest.raises(Interrupted):
        fetcher.read_range_into(0, memoryview(bytearray(10)))
    with pytest.raises(Interrupted):
        list(fetcher.stream(2))


def test_abort_wakes_every_reader():
    inside = threading.Barrier(4)
    cancelled = threading.Event()

    class Hanging(MemorySource):
        def open(self, offset=0, length=None):
            reader = super().open(offset, length)
            woken = threading.Event()
            reader.abort = woken.set

            def readinto(view):
                inside.wait(60)
                assert woken.wait(60)
                raise Interrupted("aborted")

            reader.readinto = readinto
            return reader

    fetcher = fetcher_of(Hanging(DATA), cancelled=cancelled)
    raised = []

    def fill(at):
        try:
            fetcher.read_range_into(at, memoryview(bytearray(10)))
        except Interrupted as error:
            raised.append(error)

    threads = [threading.Thread(target=fill, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    inside.wait(60)
    cancelled.set()
    fetcher.abort()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(raised) == 3


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 120_000),
    st.integers(1, 5),
    st.lists(st.integers(0, 9000), max_size=8),
    st.sampled_from([4096, 10_000, 65536]),
    st.booleans(),
)
def test_a_stream_is_the_content_in_order(size, connections, breaks, chunk, ranges):
    data = DATA[:size]
    faults = [once_at(at, SourceUnreachable("reset")) for at in breaks] if ranges else []
    source = MemorySource(data, ranges=ranges, faults=faults, most=7000)
    fetcher = fetcher_of(source, retries=len(breaks))
    before, module.STREAM_CHUNK = module.STREAM_CHUNK, chunk
    try:
        assert b"".join(bytes(view) for view in fetcher.stream(connections)) == data
    finally:
        module.STREAM_CHUNK = before
    assert fetcher._meter.fetched == len(data)
    assert fetcher._readers == set()


def test_without_a_length_the_stream_ends_where_the_source_ends():
    for ranges in (True, False):
        fetcher = fetcher_of(MemorySource(DATA, length=False, ranges=ranges, most=9999))
        assert b"".join(bytes(view) for view in fetcher.stream(3)) == DATA


def test_a_broken_stream_without_ranges_is_for_the_caller_to_begin_again():
    source = MemorySource(DATA, ranges=False, faults=[once_at(1000, SourceStalled("stalled"))], most=500)
    with pytest.raises(RestartRequired) as caught:
        list(fetcher_of(source).stream(1))
    assert isinstance(caught.value.cause, SourceStalled)
    assert len(source.opened) == 1


def test_a_stream_that_ends_early_is_broken_and_one_that_goes_on_too_long_refused():
    short = MemorySource(DATA, ranges=False)
    short.facts = MemorySource(DATA + b"x").facts.__class__(location="m", length=len(DATA) + 1, ranges=False)
    with pytest.raises(RestartRequired) as caught:
        list(fetcher_of(short).stream(1))
    assert isinstance(caught.value.cause, SourceTruncated)
    short.facts = short.facts.__class__(location="m", length=len(DATA) - 1, ranges=False)
    with pytest.raises(SourceTooLong):
        list(fetcher_of(short).stream(1))


@pytest.mark.parametrize("error", [SourceNotFound("gone"), SourceChanged("another"), ZeroDivisionError()])
def test_other_failures_of_a_stream_are_themselves(error):
    source = MemorySource(DATA, ranges=False, faults=[once_at(10, error)], most=10)
    with pytest.raises(type(error)):
        list(fetcher_of(source).stream(1))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_stream_left_half_read_leaves_no_thread(ranges, monkeypatch):
    monkeypatch.setattr(module, "STREAM_CHUNK", 4096)
    before = threading.active_count()
    fetcher = fetcher_of(MemorySource(DATA, ranges=ranges), cancelled=threading.Event())
    stream = fetcher.stream(3)
    assert bytes(next(stream)) == DATA[:4096]
    stream.close()
    assert threading.active_count() == before
    assert fetcher._readers == set()


def test_a_stream_is_not_read_further_ahead_than_it_has_buffers(monkeypatch):
    monkeypatch.setattr(module, "STREAM_CHUNK", 4096)
    fetcher = fetcher_of(MemorySource(DATA), cancelled=threading.Event())
    stream = fetcher.stream(2)
    next(stream)
    assert fetcher._meter.fetched <= 5 * 4096
    stream.close()


def test_the_first_bytes_of_what_comes_once_are_not_read_ahead():
    """The first bytes decide about the upload before more is read of what its client could send again."""
    data = DATA * 10
    fetcher = fetcher_of(MemorySource(data, ranges=False), cancelled=threading.Event())
    stream, given = fetcher.stream(1), 0
    while given < 256 << 10:
        piece = next(stream)
        given += len(piece)
        assert len(piece) <= 64 << 10
        assert fetcher._meter.fetched == given
    assert len(next(stream)) == 2 << 20
    stream.close()


def test_a_reader_shows_what_it_does():
    cancelled = threading.Event()
    reader = ResumingReader(MemorySource(b"x"), control_of(cancelled=cancelled))
    assert repr(reader) == "<ResumingReader of memory:: ranged, 0 requests in progress>"
    cancelled.set()
    assert "cancelled" in repr(reader)
