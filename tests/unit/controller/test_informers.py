"""Tests of which parts of objects are cached, and which namespaces are watched."""

from __future__ import annotations

import json

from cdi.api.annotations import ATTEMPT, JOB, JOURNAL
from cdi.api.kinds import CLAIMS, CONFIG_MAPS, DATA_VOLUMES, EVENTS, NODES, PODS, SECRETS, VOLUMES
from cdi.controller.request import Scope
from tests.unit.controller.objects import body, watches


def kept(resource, given):
    made = watches((resource, given))
    found = made.get(resource, given["metadata"].get("namespace", ""), given["metadata"]["name"])
    assert found is not None
    return found


def test_secrets_and_config_maps_are_not_followed() -> None:
    for resource in (SECRETS, CONFIG_MAPS):
        assert resource not in watches()._reflectors
        assert watches((resource, body(resource, "s", data={"k": "hush"}))).get(resource, "ns", "s") is None


def test_what_kubectl_applied_is_not_kept_twice() -> None:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "yes"}
    found = kept(DATA_VOLUMES, body(DATA_VOLUMES, "d", annotations=annotations, spec={"a": [{"b": 1}]}))
    assert found["metadata"]["annotations"] == {"mine": "yes"}
    assert found["spec"] == {"a": [{"b": 1}]}


def test_a_pod_keeps_what_it_is_known_by_and_not_its_work() -> None:
    found = kept(PODS, body(PODS, "p", annotations={JOB.key: "x", JOURNAL.key: "y", ATTEMPT.key: "3"}, status={}))
    assert found["metadata"]["annotations"] == {ATTEMPT.key: "3"}


def test_of_a_node_only_its_health_is_kept() -> None:
    conditions = [
        {"type": "Ready", "status": "True", "lastHeartbeatTime": "x"},
        {"type": "DiskPressure", "status": "False"},
    ]
    found = kept(NODES, body(NODES, "n", spec={"podCIDR": "x"}, status={"conditions": conditions, "images": [1]}))
    assert found["status"] == {"conditions": [{"type": "Ready", "status": "True"}]}
    assert "spec" not in found


def test_of_a_volume_its_claim_and_form_are_kept() -> None:
    spec = {"claimRef": {"uid": "u"}, "capacity": {"storage": "1Gi"}, "csi": {"volumeAttributes": {}}}
    found = kept(VOLUMES, body(VOLUMES, "v", spec=spec, status={"phase": "Bound", "message": "x"}))
    assert found["spec"] == {"claimRef": {"uid": "u"}, "capacity": {"storage": "1Gi"}}
    assert found["status"] == {"phase": "Bound"}


def test_an_event_is_cut() -> None:
    about = {"namespace": "ns", "name": "d", "uid": "u", "resourceVersion": "5"}
    found = kept(EVENTS, body(EVENTS, "e", involvedObject=about, reason="r", message="x" * 9000, series={}))
    assert len(found["message"]) == 1024
    assert found["involvedObject"] == {"namespace": "ns", "name": "d", "uid": "u"}


def test_words_that_many_objects_share_are_kept_once() -> None:
    made = watches(*((CLAIMS, json.loads(json.dumps(body(CLAIMS, n, status={"phase": "Bound"})))) for n in "ab"))
    first, second = (made.get(CLAIMS, "ns", n)["status"] for n in "ab")
    assert next(iter(first)) is next(iter(second))
    assert first["phase"] is second["phase"]


def test_namespaces_outside_of_the_scope_are_not_followed() -> None:
    made = watches(scope=Scope(namespaces=("a", "b")))
    for namespace in ("a", "b", "c"):
        made.record_write(CLAIMS, body(CLAIMS, "x", namespace))
    assert sorted(each["metadata"]["namespace"] for each in made.values(CLAIMS)) == ["a", "b"]
    assert made.get(CLAIMS, "c", "x") is None
    made.record_write(VOLUMES, body(VOLUMES, "pv", spec={}))
    assert made.get(VOLUMES, "", "pv") is not None


def test_what_is_not_listed_yet_is_said() -> None:
    assert "pods in a: not listed yet" in watches(scope=Scope(namespaces=("a",))).unsynced()
