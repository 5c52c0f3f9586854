"""Tests of the work queue: each key is returned once, on time, and never to two workers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.controller.workqueue import MAX_REASONS, Reason, WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def queue(clock: Clock, chance: float = 0.5) -> WorkQueue[str]:
    return WorkQueue(clock=clock, jitter=lambda: chance, base=1.0, max_backoff=60.0)


def drained(keys: WorkQueue[str]) -> list[str]:
    found = []
    while (key := keys.pop_ready()) is not None:
        found.append(key)
        keys.done(key)
    return found


def test_a_key_that_is_added_twice_comes_once() -> None:
    keys = queue(Clock())
    for key in ("a", "b", "a"):
        keys.add(key)
    assert drained(keys) == ["a", "b"]


def test_a_key_in_work_is_given_to_nobody_else_and_comes_again_afterwards() -> None:
    keys = queue(Clock())
    keys.add("a")
    assert keys.pop_ready() == "a"
    keys.add("a")
    assert keys.pop_ready() is None
    keys.done("a")
    assert drained(keys) == ["a"]


def test_a_key_waits_for_its_moment() -> None:
    clock = Clock()
    keys = queue(clock)
    keys.add("a", 5)
    assert keys.pop_ready() is None
    clock.now += 4.9
    assert keys.pop_ready() is None
    clock.now += 0.2
    assert drained(keys) == ["a"]


@pytest.mark.parametrize(("delays", "when"), [((60, 5), 5), ((5, 60), 5), ((5, 0), 0)])
def test_the_earliest_moment_counts_and_only_that(delays: tuple[float, float], when: float) -> None:
    clock = Clock()
    keys = queue(clock)
    for delay in delays:
        keys.add("a", delay)
    clock.now += when
    assert drained(keys) == ["a"]
    clock.now += 100
    assert drained(keys) == []


def test_the_next_moment_is_that_of_the_earliest_key_that_is_not_in_work() -> None:
    clock = Clock()
    keys = queue(clock)
    assert keys.next_due() is None
    keys.add("a", 5)
    keys.add("b", 3)
    assert keys.next_due() == clock.now + 3
    keys.add("a")
    assert keys.next_due() == clock.now
    keys.pop_ready()
    assert keys.next_due() == clock.now + 3


def test_a_delay_that_is_asked_for_during_work_begins_then() -> None:
    clock = Clock()
    keys = queue(clock)
    keys.add("a")
    keys.pop_ready()
    keys.add("a", 10)
    clock.now += 4
    keys.done("a")
    assert keys.pop_ready() is None
    clock.now += 6
    assert keys.pop_ready() == "a"


def test_pauses_double_up_to_the_longest_and_start_anew_after_success() -> None:
    keys = queue(Clock())
    pauses = []
    for _ in range(8):
        keys.add("a")
        keys.pop_ready()
        pauses.append(keys.retry("a"))
        keys.done("a")
        keys.add("a")
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    keys.forget("a")
    assert keys.retry("a") == 1


def test_pauses_are_spread_by_a_quarter() -> None:
    assert queue(Clock(), 0.0).retry("a") == 0.75
    assert queue(Clock(), 1.0).retry("a") == 1.25


def because(*texts: str) -> tuple[Reason, ...]:
    return tuple(Reason("pods", text) for text in texts)


def test_a_key_in_work_carries_the_reasons_that_made_it_due() -> None:
    keys = queue(Clock())
    for reason in because("pod x changed", "pod y changed", "pod x changed"):
        keys.add("a", reason=reason)
    keys.pop_ready()
    assert keys.reasons("a") == because("pod x changed", "pod y changed")
    keys.done("a")
    assert keys.reasons("a") == ()


def test_a_reason_given_during_work_belongs_to_the_next_turn() -> None:
    keys = queue(Clock())
    (first, second) = because("pod x changed", "pod y changed")
    keys.add("a", reason=first)
    keys.pop_ready()
    keys.add("a", reason=second)
    assert keys.reasons("a") == (first,)
    keys.done("a")
    keys.pop_ready()
    assert keys.reasons("a") == (second,)


def test_a_requeue_that_an_event_overtakes_is_no_reason() -> None:
    keys = queue(Clock())
    (event, requeue) = because("pod x changed", "requeued after 30 s")
    keys.add("a", 30, reason=requeue)
    keys.add("a", reason=event)
    keys.add("a", 60, reason=requeue)
    keys.pop_ready()
    assert keys.reasons("a") == (event,)


def test_only_the_first_reasons_of_a_key_are_kept() -> None:
    keys = queue(Clock())
    texts = [f"pod {number} changed" for number in range(100)]
    for reason in because(*texts):
        keys.add("a", reason=reason)
    keys.pop_ready()
    assert keys.reasons("a") == because(*texts[:MAX_REASONS])


def test_a_retry_states_its_reason() -> None:
    keys = queue(clock := Clock())
    (failed,) = because("retried after an error")
    keys.retry("a", reason=failed)
    clock.now += 60
    keys.pop_ready()
    assert keys.reasons("a") == (failed,)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=30), st.integers(0, 9))
def test_whatever_is_added_comes_out_once_by_the_order_of_moments(adds: list[tuple[str, int]], wait: int) -> None:
    clock = Clock()
    keys = queue(clock)
    moments: dict[str, int] = {}
    for key, delay in adds:
        keys.add(key, delay)
        moments[key] = min(delay, moments.get(key, delay))
    clock.now += wait
    due = drained(keys)
    assert sorted(due) == sorted(key for key, moment in moments.items() if moment <= wait)
    assert [moments[key] for key in due] == sorted(moments[key] for key in due)
    assert len(keys) == len(moments) - len(due)


async def test_waiting_workers_share_the_keys() -> None:
    keys: WorkQueue[int] = WorkQueue()
    seen: list[int] = []
    busy: set[int] = set()
    everything = asyncio.Event()

    async def work() -> None:
        while True:
            key = await keys.get()
            assert key not in busy
            busy.add(key)
            await asyncio.sleep(0)
            busy.remove(key)
            seen.append(key)
            keys.done(key)
            if len(seen) >= 50:
                everything.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(4)]
        await asyncio.sleep(0)
        for key in range(50):
            keys.add(key, 0.001 * (key % 3))
        await everything.wait()
        for task in tasks:
            task.cancel()
    assert sorted(seen) == list(range(50))


async def test_a_key_that_is_always_due_lets_other_tasks_run() -> None:
    keys: WorkQueue[str] = WorkQueue()
    keys.add("again")
    ran: list[int] = []

    async def other() -> None:
        ran.append(1)

    async def work() -> bool:
        task = asyncio.ensure_future(other())
        for _ in range(100):
            keys.done(await keys.get())
            keys.add("again")
        seen = bool(ran)
        await task
        return seen

    assert await work()


async def test_a_key_wakes_one_of_several_waiters() -> None:
    keys: WorkQueue[str] = WorkQueue()
    looks: list[int] = []
    look = keys.pop_ready
    keys.pop_ready = lambda: looks.append(1) or look()  # type: ignore[method-assign,func-returns-value]
    waiting = [asyncio.ensure_future(keys.get()) for _ in range(4)]
    await asyncio.sleep(0.01)
    looks.clear()
    keys.add("a")
    done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == ["a"]
    assert len(looks) <= 2
    for task in left:
        task.cancel()


async def test_an_earlier_key_wakes_who_waits_for_a_later_one() -> None:
    keys: WorkQueue[str] = WorkQueue()
    keys.add("later", 3600)
    waiting = asyncio.ensure_future(keys.get())
    await asyncio.sleep(0)
    keys.add("now")
    assert await waiting == "now"
