"""Tests of the division of slots among namespaces."""

from __future__ import annotations

from collections import Counter

import pytest

from cdi.reconcile.dataimportcron.slots import ROTATION_INTERVAL, may_start

NOW = 1_800_000_000.0
MAXIMUM = 8


def fill(waiting, running=(), now=NOW):
    """Return the slots held after each namespace, in the order given, has taken all that it may."""
    held = Counter(dict(running))
    left = Counter(waiting)
    moved = True
    while moved:
        moved = False
        for namespace in waiting:
            while left[namespace] and may_start(namespace, held, lambda: +left, MAXIMUM, now):
                held[namespace] += 1
                left[namespace] -= 1
                moved = True
    return dict(held)


def test_one_namespace_may_hold_all_slots_while_no_other_waits():
    assert fill({"a": 100}) == {"a": 8}


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ({"a": 100, "b": 100}, {"a": 4, "b": 4}),
        ({"a": 100, "b": 1}, {"a": 7, "b": 1}),
        ({"a": 100, "b": 2, "c": 100}, {"a": 3, "b": 2, "c": 3}),
        ({name: 100 for name in "abcdefgh"}, dict.fromkeys("abcdefgh", 1)),
    ],
    ids=["two", "one-small", "three", "eight"],
)
def test_slots_are_divided_equally_whoever_asks_first(waiting, expected):
    assert fill(waiting) == expected
    assert fill(dict(reversed(waiting.items()))) == expected


def test_a_free_slot_goes_to_the_namespace_that_holds_fewest():
    held = {"a": 3, "b": 4}
    waiting = {"a": 50, "b": 50, "c": 1}
    allowed = [name for name in waiting if may_start(name, held, lambda: waiting, MAXIMUM, NOW)]
    assert allowed == ["c"]


def test_what_waits_is_not_counted_while_no_slot_is_free():
    def unexpected():
        raise AssertionError("all objects of the cluster are counted")

    assert not may_start("a", {"b": MAXIMUM}, unexpected, MAXIMUM, NOW)


@pytest.mark.parametrize("held", [{}, {"a": 2, "b": 5}, {"x": 7}, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}])
def test_a_free_slot_is_always_open_to_some_namespace(held):
    for minute in range(50):
        waiting = {f"n{number}": 3 for number in range(20)} | {"a": 9}
        allowed = [name for name in waiting if may_start(name, held, lambda w=waiting: w, MAXIMUM, NOW + 60 * minute)]
        assert allowed


def test_a_namespace_with_one_object_is_served_among_many_with_hundreds():
    """The others ask for each slot as soon as it is free; this one asks last."""
    crowd = {f"tenant-{number}": 1_000 for number in range(30)}
    held = Counter({name: 1 for name in list(crowd)[:MAXIMUM]})
    for minute in range(1_000):
        now = NOW + minute * ROTATION_INTERVAL
        held -= Counter(list(held)[:1])  # one pod ends
        for name in (*crowd, "small"):
            if may_start(name, held, lambda: {**crowd, "small": 1}, MAXIMUM, now):
                held[name] += 1
        assert sum(held.values()) == MAXIMUM
        if held["small"]:
            break
    assert held["small"] == 1


def test_a_namespace_that_waits_and_never_starts_does_not_keep_others_out():
    """A quota refuses its pods, for instance."""
    stuck = {f"stuck-{number}": 100 for number in range(12)}
    served = 0
    for minute in range(100):
        now = NOW + minute * ROTATION_INTERVAL
        served += may_start("a", {}, lambda: {**stuck, "a": 1}, MAXIMUM, now)
    assert served > 20
