"""Tests of Events as objects."""

from __future__ import annotations

import pytest

from cdi.reconcile.actions import Event
from cdi.reconcile.event_object import build_event, build_repetition

VOLUME = {
    "apiVersion": "cdi.kubevirt.io/v1beta1",
    "kind": "DataVolume",
    "metadata": {"name": "a", "namespace": "images", "uid": "u", "resourceVersion": "7"},
}
STARTED = Event(type="Normal", reason="Started", message="The import has started")


def build(body=VOLUME, event=STARTED, now=0.0):
    return build_event(body, event, now, component="tests")


def test_an_event_names_its_object_and_its_reporter():
    event = build()
    assert event["involvedObject"] == {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "namespace": "images",
        "name": "a",
        "uid": "u",
        "resourceVersion": "7",
    }
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "Started", "The import has started")
    assert (event["source"], event["reportingComponent"]) == ({"component": "tests"}, "tests")
    assert event["firstTimestamp"] == event["lastTimestamp"] == "1970-01-01T00:00:00Z"
    assert event["count"] == 1


def test_an_event_of_a_cluster_scoped_object_is_in_the_default_namespace():
    event = build({**VOLUME, "metadata": {"name": "a", "uid": "u"}})
    assert event["metadata"]["namespace"] == "default"
    assert "namespace" not in event["involvedObject"]


@pytest.mark.parametrize(
    ("body", "event"),
    [
        ({**VOLUME, "metadata": {**VOLUME["metadata"], "uid": "v"}}, STARTED),
        (VOLUME, Event(type="Normal", reason="Ended", message=STARTED.message)),
        (VOLUME, Event(type="Normal", reason="Started", message="x")),
    ],
)
def test_only_equal_events_of_an_object_have_one_name(body, event):
    assert build(now=5.0)["metadata"]["name"] == build()["metadata"]["name"]
    assert build(body, event)["metadata"]["name"] != build()["metadata"]["name"]


def test_names_and_messages_are_bounded():
    long = {**VOLUME, "metadata": {**VOLUME["metadata"], "name": "a" * 199 + "." * 54}}
    event = build(long, Event(type="Warning", reason="R", message="m" * 5000))
    assert len(event["metadata"]["name"]) == 199 + 1 + 16
    assert len(event["message"]) == 1024


@pytest.mark.parametrize(("count", "after"), [(1, 2), (None, 2), (41, 42)])
def test_a_repetition_counts_up_and_keeps_the_first_time(count, after):
    known = {**build(), "count": count}
    assert build_repetition(known, 60.0) == {"count": after, "lastTimestamp": "1970-01-01T00:01:00Z"}
