"""Tests that the incremental index of clones waiting for a source equals a full search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdi.api.kinds import CLAIMS, DATA_VOLUMES
from cdi.api.names import ANN_POD_PHASE
from cdi.api.phases import TERMINAL_PHASES
from cdi.controller.request import datavolume
from cdi.reconcile.clone.plan_annotation import ANN_CLONE_REQUEST, ANN_SNAPSHOT_REQUEST
from tests.unit.controller.objects import body, watches

PLACES = [(namespace, name, snapshot) for namespace in "xy" for name in "ab" for snapshot in (False, True)]
PHASES = [None, "Pending", *TERMINAL_PHASES]
origins = st.one_of(st.none(), st.just("reference"), st.sampled_from(PLACES))


@st.composite
def states(draw):
    """Draw the next state of one of a few objects; None deletes it."""
    resource = draw(st.sampled_from([CLAIMS, DATA_VOLUMES]))
    name = draw(st.sampled_from("pq"))
    if draw(st.booleans()) and draw(st.booleans()):
        return resource, name, None
    return resource, name, (draw(origins), draw(st.sampled_from(PHASES)))


def made(resource, name, origin, phase):
    pinned = origin not in (None, "reference")
    namespace, source, snapshot = origin if pinned else ("", "", False)
    if resource == CLAIMS:
        annotations = {ANN_POD_PHASE: phase} if phase else {}
        if pinned:
            annotations[ANN_SNAPSHOT_REQUEST if snapshot else ANN_CLONE_REQUEST] = f"{namespace}/{source}"
        return body(CLAIMS, name, annotations=annotations, spec={})
    spec = {}
    if pinned:
        spec["source"] = {"snapshot" if snapshot else "pvc": {"namespace": namespace, "name": source}}
    elif origin == "reference":
        spec["sourceRef"] = {"kind": "DataSource", "name": "golden"}
    more = {"pvc": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}
    return body(DATA_VOLUMES, name, spec={**spec, **more}, status={"phase": phase} if phase else {})


@given(st.lists(states(), max_size=12))
def test_it_is_what_a_look_at_everything_finds(steps):
    known = watches()
    there = {}
    for resource, name, state in steps:
        if state is None:
            reflector = known._of(resource, "ns")
            reflector._remove(("ns", name))
            there.pop((resource, name), None)
        else:
            known.record_write(resource, made(resource, name, *state))
            there[resource, name] = state
    for place in PLACES:
        expected = {
            datavolume("ns", name)
            for (resource, name), (origin, phase) in there.items()
            if phase not in TERMINAL_PHASES
            and (origin == place or (origin == "reference" and resource == DATA_VOLUMES))
        }
        namespace, name, snapshot = place
        assert set(known.waiting.clones_of(namespace, name, snapshot=snapshot)) == expected
    index = known.waiting._index
    assert sum(len(each) for each in index._members.values()) == len(index._keys)
    assert all(index._members.values())
