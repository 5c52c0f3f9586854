import hashlib
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import ChecksumMismatch, InternalError, Interrupted, SourceNotFound
from cdi.transfer.qemu.block_cache import BlockCache

BLOCK = 64


class Origin:
    """Counting source in memory."""

    def __init__(self, length, seed=1):
        self.data = random.Random(seed).randbytes(length)
        self.lock = threading.Lock()
        self.fetched = []

    def fetch(self, offset, view):
        with self.lock:
            self.fetched.append(offset)
        view[:] = self.data[offset : offset + len(view)]


def cache_of(origin, **more):
    defaults = {"block_size": BLOCK, "memory": 8 * BLOCK, "connections": 2}
    return BlockCache(length=len(origin.data), fetch=origin.fetch, **(defaults | more))


def read(cache, offset, length):
    data = b"".join(cache.read_at(offset, length))
    cache.release()
    return data


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 40 * BLOCK),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, BLOCK)), max_size=60),
    connections=st.integers(1, 4),
    blocks=st.integers(4, 12),
)
def test_any_order_of_reads_gives_the_sources_bytes_and_a_true_digest(length, places, connections, blocks):
    origin = Origin(length)
    seen = bytearray()
    with cache_of(origin, memory=blocks * BLOCK, connections=connections, on_block_in_order=seen.extend) as cache:
        for place, size in places:
            offset = int(place * length)
            size = min(size, length - offset)
            assert read(cache, offset, size) == origin.data[offset : offset + size]
        cache.finish()
        assert bytes(seen) == origin.data
        assert cache.watermark == length
        # Once for the digest; additionally only the readers' requests and their readahead.
        assert len(origin.fetched) <= -(-length // BLOCK) + (2 + blocks) * len(places)


def test_many_readers_at_once_get_their_own_bytes():
    origin = Origin(200 * BLOCK + 17)
    failures = []

    def reader(seed):
        places = random.Random(seed)
        try:
            for _ in range(300):
                offset = places.randrange(len(origin.data))
                size = min(places.randint(1, BLOCK), len(origin.data) - offset)
                if read(cache, offset, size) != origin.data[offset : offset + size]:
                    failures.append((offset, size))
        except Exception as error:
            failures.append(error)

    digest = hashlib.sha256()
    with cache_of(origin, on_block_in_order=digest.update) as cache:
        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cache.finish()
    assert not failures
    assert digest.digest() == hashlib.sha256(origin.data).digest()


@pytest.mark.parametrize("piece", [1, 7, BLOCK])
def test_a_sequential_read_fetches_every_byte_once(piece):
    origin = Origin(60 * BLOCK + 5)
    digest = hashlib.sha256()
    with cache_of(origin, on_block_in_order=digest.update) as cache:
        for offset in range(0, len(origin.data), piece):
            size = min(piece, len(origin.data) - offset)
            assert read(cache, offset, size) == origin.data[offset : offset + size]
        cache.finish()
        assert cache.fetched == len(origin.data)
    assert digest.digest() == hashlib.sha256(origin.data).digest()


def test_readers_that_outrun_a_slow_digest_wait_for_it_instead_of_fetching_twice():
    origin = Origin(100 * BLOCK)
    read_all = threading.Event()
    seen = 0

    def slow(view):
        nonlocal seen
        # The digest blocks until the reader is blocked too; otherwise the reader would have everything by then.
        if seen == 5 * BLOCK:
            read_all.wait(0.2)
        seen += len(view)

    with cache_of(origin, on_block_in_order=slow) as cache:
        for offset in range(0, len(origin.data), BLOCK):
            read(cache, offset, BLOCK)
        read_all.set()
        cache.finish()
        assert cache.fetched == len(origin.data)


def test_a_table_at_the_end_read_first_costs_its_block_at_most_twice():
    origin = Origin(100 * BLOCK)
    with cache_of(origin, on_block_in_order=lambda view: None) as cache:
        read(cache, 99 * BLOCK, BLOCK)
        for offset in range(0, len(origin.data), BLOCK):
            read(cache, offset, BLOCK)
        cache.finish()
        assert cache.fetched <= len(origin.data) + BLOCK


def test_what_a_reader_leaves_out_is_fetched_before_it_goes_on_and_not_twice():
    origin = Origin(200 * BLOCK)
    with cache_of(origin, on_block_in_order=lambda view: None) as cache:
        read(cache, 0, BLOCK)
        for offset in range(100 * BLOCK, len(origin.data), BLOCK):
            read(cache, offset, BLOCK)
        cache.finish()
        # The first blocks at the new offset may have been evicted in favour of the gap.
        assert cache.fetched <= len(origin.data) + 8 * BLOCK


def test_reading_ahead_happens_without_being_asked():
    origin = Origin(50 * BLOCK)
    with cache_of(origin) as cache:
        read(cache, 0, 1)
        read(cache, BLOCK, 1)
        for _ in range(1000):
            with origin.lock:
                if 3 * BLOCK in origin.fetched:
                    break
            threading.Event().wait(0.01)
        assert 3 * BLOCK in origin.fetched


def test_memory_stays_within_its_bound():
    origin = Origin(300 * BLOCK)
    with cache_of(origin, memory=6 * BLOCK, on_block_in_order=lambda view: None) as cache:
        for index in random.Random(3).sample(range(300), 300):
            read(cache, index * BLOCK, BLOCK)
            assert len(cache._blocks) <= 6
        assert cache._buffers <= 6


def test_a_failed_fetch_reaches_every_reader_and_the_end():
    def fetch(offset, view):
        if offset >= 3 * BLOCK:
            raise SourceNotFound("gone")

    with BlockCache(
        length=10 * BLOCK, fetch=fetch, block_size=BLOCK, memory=8 * BLOCK, on_block_in_order=lambda view: None
    ) as cache:
        with pytest.raises(SourceNotFound):
            read(cache, 5 * BLOCK, 1)
        with pytest.raises(SourceNotFound):
            read(cache, 6 * BLOCK, 1)
        with pytest.raises(SourceNotFound):
            cache.finish()


def test_a_defect_in_fetch_does_not_leave_readers_waiting():
    def fetch(offset, view):
        raise RuntimeError("boom")

    with BlockCache(length=BLOCK, fetch=fetch, block_size=BLOCK) as cache:
        with pytest.raises(InternalError, match="boom"):
            read(cache, 0, 1)


def test_what_the_digest_raises_ends_the_reading():
    def digest(view):
        raise ChecksumMismatch("no")

    origin = Origin(10 * BLOCK)
    with cache_of(origin, on_block_in_order=digest) as cache, pytest.raises(ChecksumMismatch):
        for index in range(10):
            read(cache, index * BLOCK, BLOCK)
        cache.finish()


def test_close_wakes_a_waiting_reader():
    begun, go_on = threading.Event(), threading.Event()

    def fetch(offset, view):
        begun.set()
        go_on.wait()

    cache = BlockCache(length=BLOCK, fetch=fetch, block_size=BLOCK)
    raised = []

    def reader():
        try:
            read(cache, 0, 1)
        except Interrupted as error:
            raised.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    begun.wait()
    closing = threading.Thread(target=cache.close)
    closing.start()
    thread.join()
    go_on.set()
    closing.join()
    assert raised
    with pytest.raises(Interrupted):
        read(cache, 0, 1)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, BLOCK + 1), (10 * BLOCK, 1), (10 * BLOCK - 1, 2)])
def test_reads_out_of_bounds_are_defects(offset, length):
    with cache_of(Origin(10 * BLOCK)) as cache, pytest.raises(InternalError):
        cache.read_at(offset, length)


def test_nothing_is_fetched_before_the_first_read():
    origin = Origin(10 * BLOCK)
    with cache_of(origin, on_block_in_order=lambda view: None):
        pass
    assert origin.fetched == []


def test_an_empty_source_is_finished_at_once():
    with cache_of(Origin(0), on_block_in_order=lambda view: None) as cache:
        cache.finish()
        assert cache.watermark == 0
