from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.kinds import CONFIG_MAPS
from cdi.kube.reflector import WatchEvent as Told
from cdi.store.base import Key
from cdi.store.cluster_watch import ChangeBuffer

KEY = Key("configmaps", "n", "a")


def body(version):
    return {"metadata": {"name": "a", "namespace": "n", "resourceVersion": str(version)}}


def tell(pending, *types):
    listen = pending.listener(CONFIG_MAPS)
    for version, each in enumerate(types):
        state = body(version)
        old, new = (None, state) if each == "ADDED" else (state, None) if each == "DELETED" else (state, state)
        listen(Told(type=each, old=old, new=new))


@pytest.mark.parametrize(
    ("types", "left"),
    [
        (["ADDED", "MODIFIED", "MODIFIED"], [("ADDED", "2")]),
        (["MODIFIED", "MODIFIED"], [("MODIFIED", "1")]),
        (["MODIFIED", "DELETED"], [("DELETED", "1")]),
        (["ADDED", "DELETED"], []),
        (["DELETED", "ADDED", "MODIFIED"], [("DELETED", "0"), ("ADDED", "2")]),
        (["DELETED", "ADDED", "DELETED"], [("DELETED", "0")]),
    ],
)
def test_only_the_newest_state_waits_to_be_told(types, left):
    pending = ChangeBuffer()
    tell(pending, *types)
    assert [(each.type, each.body["metadata"]["resourceVersion"]) for each in pending.take()] == left
    assert pending.take() == []


@given(st.lists(st.booleans(), max_size=20), st.sets(st.integers(0, 20)), st.booleans())
def test_whoever_takes_now_and_then_ends_up_with_what_there_is(steps, takes, there):
    pending, known, knows = ChangeBuffer(), there, there

    def take():
        nonlocal knows
        for change in pending.take():
            assert (change.type == "ADDED") == (not knows)
            knows = change.type != "DELETED"

    for number, wants in enumerate(steps):
        if wants != known:
            tell(pending, "ADDED" if wants else "DELETED")
        elif wants:
            tell(pending, "MODIFIED")
        known = wants
        if number in takes:
            take()
    take()
    assert knows == known


def test_what_is_taken_belongs_to_the_taker():
    pending, kept = ChangeBuffer(), body(1)
    pending.listener(CONFIG_MAPS)(Told(type="ADDED", old=None, new=kept))
    [change] = pending.take()
    change.body["metadata"]["name"] = "changed"
    assert kept == body(1)
    assert change.key == KEY
