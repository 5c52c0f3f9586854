"""Tests of limits: kept on average, oldest first, changed at run time, and left at once when cancelled.

Time is a counter here: sleeping advances it.
"""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import Interrupted
from cdi.api.job import Limits
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.rate_limit import RateLimiter


class Time:
    """A clock, and the event whose waits advance it."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []
        self.on_wait = None
        self.set_after = None

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        if self.on_wait is not None:
            self.on_wait()
        return self.is_set()

    def is_set(self):
        return self.set_after is not None and self.now >= self.set_after


def made(time, **limits):
    return RateLimiter(Limits(**limits), time, clock=time)


@given(st.integers(10_000, 1 << 30), st.lists(st.integers(1, 4 << 20), min_size=1, max_size=60))
def test_the_rate_is_kept(rate, sizes):
    time = Time()
    throttle = made(time, bandwidth=rate)
    began, sent = time.now, 0
    for size in sizes:
        size = min(size, throttle.max_read(size))
        throttle.consume(size, throttle.priority())
        sent += size
        # One grain may be early, and a tenth of a second's bytes may be saved up.
        assert sent <= rate * (time.now - began + 0.1) + throttle.max_read(4 << 20) + 1
    # It does not sleep longer than necessary.
    assert time.now - began <= sent / rate + 0.01


def test_no_limit_no_wait():
    time = Time()
    throttle = made(time)
    throttle.consume(1 << 40, throttle.priority())
    assert time.slept == []
    assert throttle.max_read(12345678) == 12345678


@given(st.integers(1, 1 << 34), st.integers(1, 4 << 20))
def test_a_grain_is_small_when_the_limit_is_low(rate, wanted):
    grain = made(Time(), bandwidth=rate).max_read(wanted)
    assert 1 <= grain <= max(wanted, 4096)
    assert grain <= max(4096, rate // 10)


def test_idle_time_is_not_saved_up():
    time = Time()
    throttle = made(time, bandwidth=1 << 20)
    time.now += 3600
    began, sent = time.now, 0
    while time.now < began + 2:
        throttle.consume(1 << 16, throttle.priority())
        sent += 1 << 16
    assert sent <= 2.3 * (1 << 20)


@pytest.mark.parametrize("limits", [Limits(), Limits(bandwidth=1 << 30)])
def test_a_new_limit_reaches_who_sleeps_already(limits):
    time = Time()
    throttle = made(time, bandwidth=1)
    began = time.now
    throttle.consume(1 << 20, throttle.priority())

    def change():
        if time.now > began + 3:
            throttle.change(limits)

    time.on_wait = change
    # At one byte per second this would have taken twelve days.
    throttle.consume(1 << 20, throttle.priority())
    assert time.now - began < 5


def test_cancelling_ends_the_sleep():
    time = Time()
    throttle = made(time, bandwidth=1000)
    throttle.consume(100_000, throttle.priority())
    time.set_after = time.now + 1
    with pytest.raises(Interrupted):
        throttle.consume(1, throttle.priority())
    assert time.now < 1002


def test_the_oldest_gets_what_there_is():
    """Two threads always have more to send: the younger one gets nothing until the older one is done."""
    cancelled = threading.Event()
    throttle = RateLimiter(Limits(bandwidth=20 << 20), cancelled)
    tickets = [throttle.priority() for _ in range(3)]
    order, lock = [], threading.Lock()
    barrier = threading.Barrier(3)

    def eat(ticket):
        barrier.wait()
        for _ in range(6):
            throttle.consume(1 << 20, ticket)
            with lock:
                order.append(ticket)

    threads = [threading.Thread(target=eat, args=(ticket,)) for ticket in tickets[::-1]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Each may take one grain before it sees that an older one waits.
    last = [max(n for n, ticket in enumerate(order) if ticket == wanted) for wanted in tickets]
    assert last == sorted(last)
    assert last[0] <= 6 + 2 + 2


def test_only_so_many_are_at_work_and_the_oldest_is_next():
    throttle = RateLimiter(Limits(connections=2), threading.Event())
    active, most, order = [0], [0], []
    lock, gate = threading.Lock(), threading.Event()
    tickets = [throttle.priority() for _ in range(8)]

    def work(ticket):
        with throttle.slot(ticket):
            with lock:
                active[0] += 1
                most[0] = max(most[0], active[0])
                order.append(ticket)
            gate.wait(30)
            with lock:
                active[0] -= 1

    threads = [threading.Thread(target=work, args=(ticket,)) for ticket in tickets[::-1]]
    for thread in threads[:2]:
        thread.start()
    while len(order) < 2:
        pass
    for thread in threads[2:]:
        thread.start()
    while len(throttle._entering) < 6:
        pass
    gate.set()
    for thread in threads:
        thread.join(30)
    assert most[0] == 2
    assert order[0] in tickets[6:] and order[1] in tickets[6:]
    # Two may enter at the same moment and append in either order.
    assert all(abs(place - ticket) <= 1 for place, ticket in enumerate(order[2:], tickets[0]))
    assert throttle._active == 0


def test_a_low_limit_is_not_shared_by_so_many_that_servers_hang_up():
    throttle = RateLimiter(Limits(bandwidth=100_000), threading.Event())
    entered = threading.Event()
    with throttle.slot(throttle.priority()):

        def second():
            with throttle.slot(throttle.priority()):
                entered.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
        throttle.change(Limits(bandwidth=1 << 30))
        assert entered.wait(60)
        thread.join()


def test_cancelling_ends_waiting_for_a_connection():
    cancelled = threading.Event()
    throttle = RateLimiter(Limits(connections=1), cancelled)
    with throttle.slot(throttle.priority()):
        cancelled.set()
        with pytest.raises(Interrupted), throttle.slot(throttle.priority()):
            pass
    # No state is left behind: the next one enters.
    cancelled.clear()
    with throttle.slot(throttle.priority()):
        pass


def test_a_failure_gives_the_connection_back():
    throttle = RateLimiter(Limits(connections=1), threading.Event())
    for _ in range(3):
        with pytest.raises(KeyError), throttle.slot(throttle.priority()):
            raise KeyError


def test_rate_and_time_to_go():
    now = [50.0]
    meter = ProgressMeter(lambda: now[0])
    assert meter.snapshot(0).rate == 0
    meter.total, meter.phase = 1000, "transferring"
    for _ in range(5):
        now[0] += 1
        meter.advance(meter.done + 100)
        found = meter.snapshot(7)
    assert (found.done, found.total, found.written, found.rate, found.eta) == (500, 1000, 7, 100.0, 5.0)
    now[0] += 3600
    # The rate of an hour ago no longer counts.
    for _ in range(20):
        now[0] += 1
        meter.advance(meter.done + 1)
        found = meter.snapshot(0)
    assert 0.9 <= found.rate <= 1.2


def test_done_only_grows_unless_it_starts_over():
    meter = ProgressMeter()
    meter.advance(100)
    meter.advance(50)
    assert meter.snapshot(0).done == 100
    meter.restart("again", 10)
    assert (meter.snapshot(0).done, meter.snapshot(0).note) == (10, "again")
    assert meter.snapshot(0).rate >= 0


def test_an_unknown_total_has_no_time_to_go():
    meter = ProgressMeter()
    meter.advance(5)
    assert meter.snapshot(0).eta is None
    assert meter.snapshot(0).fraction is None


def test_counts_from_many_threads_add_up():
    meter = ProgressMeter()
    threads = [threading.Thread(target=lambda: [meter.add_fetched(3) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.snapshot(0).fetched == 12000
