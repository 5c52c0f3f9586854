"""Shared passes: each chunk is read once, and no target stalls the others for long."""

import random
import threading
import time
from types import SimpleNamespace

import pytest

from cdi.api.errors import Interrupted, SourceUnreachable
from cdi.transfer.clone.digest import CHUNK
from cdi.transfer.clone.fanout import MAX_STALL, EndOfStream, FanoutReader, Piece, SubscriberLagged
from cdi.transfer.clone.fanout_scheduler import GATHER_WINDOW, JOIN_TIMEOUT, FanoutScheduler


class Words:
    """Source of numbered chunks; it fails at `broken`."""

    def __init__(self, count, *, start=0, threads=1, broken=None):
        self.threads = threads
        self.read_of = []
        self._left = iter(range(start, count))
        self._broken = broken

    def next(self):
        number = next(self._left, None)
        return None if number is None else number * CHUNK

    def read(self, offset, buffer):
        number = offset // CHUNK
        if number == self._broken:
            raise SourceUnreachable("broken")
        if self.threads > 1:
            time.sleep(random.random() / 500)
        buffer[:1] = bytes([number])
        self.read_of.append(number)
        return Piece(view=buffer, runs=((0, CHUNK),), leaf=b"")


class Clock:
    """Manual clock."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def reading_of(reader, depth=4, clock=time.monotonic, start=0):
    return FanoutReader(reader, start, depth, counted=lambda _: None, ended=lambda: None, clock=clock)


def all_of(subscription):
    """Return the numbers of the chunks until the end."""
    seen = []
    while True:
        try:
            with subscription.chunk(1e9) as chunk:
                seen.append(chunk.piece.view[0])
        except EndOfStream:
            return seen
        finally:
            assert seen == sorted(seen)


def together(*acts):
    """Run the functions concurrently and return their results."""
    given = [None] * len(acts)

    def run(number, act):
        given[number] = act()

    threads = [threading.Thread(target=run, args=each) for each in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return given


def until(what):
    for _ in range(4000):
        if what():
            return
        time.sleep(0.005)
    raise AssertionError


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_each_chunk_is_read_once_for_all(threads, depth):
    reader = Words(30, threads=threads)
    reading = reading_of(reader, depth)
    seats = [reading.join(0) for _ in range(5)]
    reading.begin()
    assert (
        together(*[lambda subscription=subscription: all_of(subscription) for subscription in seats])
        == [list(range(30))] * 5
    )
    assert sorted(reader.read_of) == list(range(30))


def test_no_more_is_read_ahead_than_there_are_buffers():
    reader = Words(30)
    reading = reading_of(reader, 4)
    subscription = reading.join(0)
    reading.begin()
    until(lambda: len(reader.read_of) == 4)
    for number in range(10):
        with subscription.chunk(1e9) as chunk:
            assert chunk.number == number
            # A chunk in use keeps its buffer.
            until(lambda number=number: len(reader.read_of) == number + 4)
        assert len(reader.read_of) <= number + 5
    subscription.leave()
    until(lambda: reading.over)
    assert len(reader.read_of) <= 14


def test_who_comes_late_gets_what_follows_if_it_is_there_still():
    reader = Words(30)
    reading = reading_of(reader, 4)
    first = reading.join(0)
    reading.begin()
    assert all_of_some(first, 10) == list(range(10))
    assert reading.join(9 * CHUNK) is None
    late = reading.join(10 * CHUNK)
    assert together(lambda: all_of(first), lambda: all_of(late)) == [list(range(10, 30))] * 2


def all_of_some(subscription, count):
    seen = []
    for _ in range(count):
        with subscription.chunk(1e9) as chunk:
            seen.append(chunk.number)
    return seen


def test_who_is_slow_holds_the_others_up_for_a_while_and_then_loses_the_seat():
    clock = Clock()
    reader = Words(30)
    reading = reading_of(reader, 4, clock)
    quick, slow = reading.join(0), reading.join(0)
    reading.begin()
    assert all_of_some(slow, 2) == [0, 1]
    got = []
    thread = threading.Thread(target=lambda: got.extend(all_of(quick)))
    thread.start()
    until(lambda: quick.next == 6)
    # The limit is checked every quarter of a second.
    clock.now += MAX_STALL * 0.5
    until(lambda: reading._held_since == clock.now)
    assert not slow.evicted
    clock.now += MAX_STALL
    thread.join(30)
    assert not thread.is_alive()
    assert got == list(range(30))
    with pytest.raises(SubscriberLagged), slow.chunk(1):
        pass
    slow.leave()


def test_what_a_lost_seat_still_has_in_hand_is_not_written_over():
    clock = Clock()
    reading = reading_of(Words(30), 4, clock)
    quick, slow = reading.join(0), reading.join(0)
    reading.begin()
    thread = threading.Thread(target=lambda: all_of(quick))
    with slow.chunk(20) as chunk:
        thread.start()
        until(lambda: quick.next == 4)
        while thread.is_alive():
            clock.now += MAX_STALL
            time.sleep(0.05)
        assert slow.evicted
        assert chunk.piece.view[0] == 0
    thread.join()


def test_where_all_are_slow_nobody_loses_a_seat():
    clock = Clock()
    reading = reading_of(Words(30), 4, clock)
    seats = [reading.join(0), reading.join(0)]
    reading.begin()
    until(lambda: not reading._free)
    for _ in range(5):
        clock.now += 100 * MAX_STALL
        time.sleep(0.1)
    assert not any(subscription.evicted for subscription in seats)
    assert (
        together(*[lambda subscription=subscription: all_of(subscription) for subscription in seats])
        == [list(range(30))] * 2
    )


def test_a_source_that_fails_fails_for_all():
    reading = reading_of(Words(30, broken=7), 4)
    seats = [reading.join(0) for _ in range(3)]
    reading.begin()

    def failing(subscription):
        with pytest.raises(SourceUnreachable):
            all_of(subscription)
        return subscription.next

    assert together(*[lambda subscription=subscription: failing(subscription) for subscription in seats]) == [7] * 3
    assert reading.join(7 * CHUNK) is None


# --- scheduling ---------------------------------------------------------------------------------------------------


def supply_of(count, made):
    def reader(start):
        made.append(Words(count, start=start // CHUNK))
        return made[-1]

    return SimpleNamespace(open=reader)


def hall_of(expected, clock=time.monotonic):
    return FanoutScheduler(expected, lambda _: None, clock=clock)


def sat(scheduler, source, target, cursor=0, *, alone=False):
    scheduler.announce(target)
    subscription = scheduler.subscribe(target, source, cursor, lambda: None, alone=alone)
    try:
        return all_of(subscription)
    finally:
        subscription.leave()


def test_those_who_are_expected_are_read_for_together():
    made, clock = [], Clock()
    scheduler, source = hall_of(3, clock), supply_of(20, made)
    seen = together(*[lambda number=number: sat(scheduler, source, number) for number in range(3)])
    assert seen == [list(range(20))] * 3
    assert len(made) == 1


def test_who_does_not_come_is_not_waited_for_without_end():
    made, clock = [], Clock()
    scheduler, source = hall_of(2, clock), supply_of(20, made)
    got = []
    thread = threading.Thread(target=lambda: got.extend(sat(scheduler, source, "one")))
    thread.start()
    thread.join(0.6)
    assert thread.is_alive()
    assert not made
    clock.now += GATHER_WINDOW
    thread.join(30)
    assert got == list(range(20))


def test_who_cannot_come_now_is_not_waited_for():
    made, clock = [], Clock()
    scheduler, source = hall_of(2, clock), supply_of(20, made)
    scheduler.announce("away")
    scheduler.withdraw("away")
    assert sat(scheduler, source, "one") == list(range(20))


def test_who_is_too_late_waits_for_others_like_it_but_not_without_end():
    made, clock = [], Clock()
    scheduler, source = hall_of(1, clock), supply_of(40, made)
    scheduler.announce("first")
    first = scheduler.subscribe("first", source, 0, lambda: None, alone=False)
    all_of_some(first, 3)
    late = threading.Thread(target=lambda: sat(scheduler, source, "late"))
    late.start()
    late.join(0.6)
    assert late.is_alive()
    assert len(made) == 1
    clock.now += JOIN_TIMEOUT
    late.join(30)
    assert not late.is_alive()
    assert len(made) == 2
    first.leave()


def test_the_next_reading_is_for_all_who_were_too_late():
    made, clock = [], Clock()
    scheduler, source = hall_of(1, clock), supply_of(40, made)
    scheduler.announce("first")
    first = scheduler.subscribe("first", source, 0, lambda: None, alone=False)
    all_of_some(first, 10)
    got = []
    late = [
        threading.Thread(target=lambda cursor=cursor: got.append(sat(scheduler, source, cursor, cursor * CHUNK)))
        for cursor in (0, 5, 7)
    ]
    for thread in late:
        thread.start()
    until(lambda: len(scheduler._waiting) == 3)
    all_of(first)
    first.leave()
    for thread in late:
        thread.join(30)
        assert not thread.is_alive()
    assert len(made) == 2
    assert sorted(len([number for number in one if number >= 7]) for one in got) == [33] * 3
    assert len(made[1].read_of) == 40


def test_who_fell_behind_is_read_for_alone():
    made = []
    scheduler, source = hall_of(1), supply_of(20, made)
    assert sat(scheduler, source, "one", 4 * CHUNK, alone=True) == list(range(4, 20))
    until(lambda: not scheduler._alone)


def test_a_target_that_goes_while_it_waits_leaves_nothing():
    clock = Clock()
    scheduler, source = hall_of(5, clock), supply_of(20, [])

    def gone():
        raise Interrupted("gone")

    scheduler.announce("one")
    with pytest.raises(Interrupted):
        scheduler.subscribe("one", source, 0, gone, alone=False)
    assert not scheduler._waiting
    assert not scheduler._coming
