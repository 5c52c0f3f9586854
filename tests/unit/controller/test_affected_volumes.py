"""Tests that the incremental index of a claim's volumes equals a full search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdi.api.kinds import VOLUMES
from tests.unit.controller.objects import body, watches

PLACES = [(namespace, name) for namespace in "xy" for name in "ab"]
STATES = st.one_of(st.just("gone"), st.none(), st.sampled_from(PLACES))
"""States of a volume: the claim that it names, if any."""


@given(st.lists(st.tuples(st.sampled_from("pqr"), STATES), max_size=15))
def test_it_is_what_a_look_at_everything_finds(steps):
    known = watches()
    there = {}
    for name, state in steps:
        if state == "gone":
            known._of(VOLUMES, "")._remove(("", name))
            there.pop(name, None)
            continue
        spec = {} if state is None else {"claimRef": dict(zip(("namespace", "name"), state, strict=True))}
        known.record_write(VOLUMES, body(VOLUMES, name, namespace="", spec=spec))
        there[name] = state
    for place in PLACES:
        found = sorted(one["metadata"]["name"] for one in known.volumes_for(*place))
        assert found == sorted(name for name, state in there.items() if state == place)
