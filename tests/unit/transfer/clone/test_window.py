"""The shared window: each chunk is read once, and no target stalls the others for long."""

import itertools
import random
import threading
import time
from contextlib import closing

import pytest

from cdi.api.errors import Interrupted, SourceUnreachable
from cdi.source.peer_chunks import CHUNK
from cdi.transfer.clone.window import (
    GATHER_WINDOW,
    JOIN_TIMEOUT,
    MAX_STALL,
    WINDOW_CHUNKS,
    Piece,
    SharedWindow,
    Subscriber,
)


class Numbers:
    """Source of numbered chunks; it fails at `broken`."""

    def __init__(self, *, broken=None):
        self.read_of = []
        self._broken = broken
        self._lock = threading.Lock()

    def read(self, offset, buffer):
        number = offset // CHUNK
        if number == self._broken:
            raise SourceUnreachable("broken")
        time.sleep(random.random() / 1000)
        buffer[:1] = bytes([number % 256])
        with self._lock:
            self.read_of.append(number)
        return Piece(view=buffer, runs=((0, CHUNK),), leaf=b"")


class Clock:
    """Clock that advances only by hand, or by `step` with each look."""

    def __init__(self, step=0.0):
        self.now = 1000.0
        self.step = step

    def __call__(self):
        self.now += self.step
        return self.now


def alive():
    pass


def window_of(expected=1, **fields):
    return SharedWindow(expected, lambda _: None, **fields)


def take(window, subscriber, reader, numbers, *, pause=lambda _: None):
    """Take chunks as one request does, and return their first bytes."""
    seen = []
    window.join(subscriber, reader, numbers[0] * CHUNK, alive)
    with closing(window.chunks(subscriber, (number * CHUNK for number in numbers), alive, alive)) as chunks:
        for chunk in chunks:
            seen.append(chunk.piece.view[0])
            pause(chunk.offset // CHUNK)
    return seen


def test_many_targets_share_one_reading():
    window, reader, count = window_of(6), Numbers(), 3 * WINDOW_CHUNKS
    subscribers = [Subscriber() for _ in range(6)]
    for one in subscribers:
        window.announce(one)
    results = {}

    def run(one):
        results[one] = take(window, one, reader, range(count))
        window.leave(one)

    threads = [threading.Thread(target=run, args=(one,)) for one in subscribers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(results[one] == list(range(count)) for one in subscribers)
    assert len(reader.read_of) <= 1.2 * count


def test_a_target_that_lags_is_not_waited_for_without_end():
    clock = Clock()
    window, reader = window_of(2, clock=clock), Numbers()
    slow, fast = Subscriber(), Subscriber()
    window.announce(slow)
    window.announce(fast)
    window.join(fast, reader, 0, lambda: window.withdraw(slow))
    window.join(slow, reader, 0, alive)
    window.give_back(window.take(slow, 0, alive))
    stalls = []

    def stalled():
        stalls.append(clock.now)
        clock.now += 1.0

    for number in range(WINDOW_CHUNKS + 2):
        window.give_back(window.take(fast, number * CHUNK, stalled))
    assert len(stalls) > MAX_STALL
    assert slow.lagged
    assert not fast.lagged
    # It reads on by itself.
    assert take(window, slow, reader, [1]) == [1]


def test_targets_that_gathered_begin_together():
    window, reader = window_of(2), Numbers()
    first, second = Subscriber(), Subscriber()
    window.announce(first)
    window.announce(second)
    waits = []

    def wait():
        if not waits:
            waits.append(threading.Thread(target=window.join, args=(second, reader, 0, alive)))
            waits[0].start()

    window.join(first, reader, 0, wait)
    # Both take part, though the thread of the other one may not have run since.
    assert first.reader is second.reader is reader
    chunk = window.take(first, 0, alive)
    assert chunk.needed == {second}
    window.give_back(chunk)
    waits[0].join(60)
    assert take(window, second, reader, [0]) == [0]
    assert reader.read_of == [0]


def test_expected_targets_are_waited_for_and_not_forever():
    clock = Clock()
    window, reader, one = window_of(2, clock=clock), Numbers(), Subscriber()
    window.announce(one)
    waited = []

    def wait():
        waited.append(clock.now)
        clock.now += 3.0

    window.join(one, reader, 0, wait)
    assert len(waited) * 3 >= GATHER_WINDOW


def test_one_that_comes_late_waits_for_those_ahead_within_bounds():
    clock = Clock()
    window, reader = window_of(clock=clock), Numbers()
    first, late = Subscriber(), Subscriber()
    window.announce(first)
    waited = []

    def wait():
        waited.append(clock.now)
        clock.now += 7.0

    assert take(window, first, reader, [90]) == [90]
    assert take(window, late, reader, [90]) == [90]
    window.leave(late)
    window.join(late, reader, 0, wait)
    assert len(waited) * 7 >= JOIN_TIMEOUT


def test_one_that_comes_late_does_not_wait_for_those_that_have_ended():
    window, reader = window_of(), Numbers()
    first, late = Subscriber(), Subscriber()
    window.announce(first)
    take(window, first, reader, [90, 91])
    window.join(late, reader, 0, lambda: window.leave(first))


def test_a_failure_reaches_everybody_and_is_not_kept():
    window, reader = window_of(), Numbers(broken=1)
    one = Subscriber()
    window.announce(one)
    with pytest.raises(SourceUnreachable):
        take(window, one, reader, [0, 1])
    reader._broken = None
    assert take(window, one, reader, [1]) == [1]


def test_what_ends_a_target_ends_its_wait():
    window, reader, one = window_of(2), Numbers(), Subscriber()
    window.announce(one)

    def stop():
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        window.join(one, reader, 0, stop)


@pytest.mark.parametrize("expected", [1, 2])
def test_the_window_keeps_to_its_size(expected):
    window, reader, one = window_of(expected, clock=Clock(step=GATHER_WINDOW)), Numbers(), Subscriber()
    window.announce(one)
    take(window, one, reader, range(3 * WINDOW_CHUNKS))
    assert len(window._chunks) <= (WINDOW_CHUNKS if expected > 1 else 3)
    assert reader.read_of == list(range(3 * WINDOW_CHUNKS))


def test_a_request_that_ends_early_holds_no_chunk():
    window, reader, one = window_of(), Numbers(), Subscriber()
    window.announce(one)
    window.join(one, reader, 0, alive)
    chunks = window.chunks(one, itertools.count(0, CHUNK), alive, alive)
    assert next(chunks).offset == 0
    chunks.close()
    assert not any(chunk.pins for chunk in window._chunks.values())


def test_one_that_waits_for_a_chunk_is_told_to_its_caller():
    window, reader, one = window_of(), Numbers(), Subscriber()
    window.announce(one)
    window.join(one, reader, 0, alive)
    go_on = threading.Event()
    reader.read = lambda offset, buffer: go_on.wait(60) and Piece(view=buffer, runs=(), leaf=b"")
    assert [chunk.offset for chunk in window.chunks(one, iter([0]), alive, go_on.set)] == [0]
