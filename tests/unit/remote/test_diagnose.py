"""Tests of the one reason why a DataVolume of a cluster makes no progress."""

from __future__ import annotations

import pytest

from cdi.remote.diagnose import blocker_of, pod_facts
from cdi.remote.worker_lookup import Filling

MOMENT = "2026-01-01T00:00:00Z"


def datavolume(phase="", **conditions):
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "golden", "namespace": "n", "uid": "u"},
        "spec": {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "1Gi"}}}},
    }
    if phase:
        listed = [
            {
                "type": kind.capitalize(),
                "status": "False",
                "reason": reason,
                "message": message,
                "lastTransitionTime": MOMENT,
                "lastHeartbeatTime": MOMENT,
            }
            for kind, (reason, message) in conditions.items()
        ]
        body["status"] = {"phase": phase, "conditions": listed}
    return body


def claim(**annotations):
    return {"metadata": {"name": "golden", "annotations": annotations}, "spec": {}, "status": {"phase": "Pending"}}


def pod(scheduled=None, node="node", **state):
    conditions = [] if scheduled is None else [{"type": "PodScheduled", "status": "False", "message": scheduled}]
    return {
        "metadata": {"name": "importer-golden"},
        "spec": {"nodeName": node, "containers": [{"name": "importer", "image": "its/image:1"}]},
        "status": {
            "phase": "Pending",
            "conditions": conditions,
            "containerStatuses": [{"name": "importer", "state": state}] if state else [],
        },
    }


def warning(reason, message):
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": {"kind": "Claim", "name": "c"}}


PULLED = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}


def test_nobody_has_looked_at_it():
    found = blocker_of(datavolume(), Filling(), [])
    assert found.reason == "NoController"
    assert "controller" in found.remedy


@pytest.mark.parametrize("phase", ["ImportInProgress", "Succeeded"])
def test_nothing_holds_up_what_is_under_way(phase):
    assert blocker_of(datavolume(phase), Filling(pod=pod(running={})), []) is None


def test_a_failure_comes_before_everything():
    body = datavolume("Failed", ready=("ChecksumMismatch", "another. Try: this"), running=("Error", "another"))
    found = blocker_of(body, Filling(pod=pod(**PULLED)), [warning("ProvisioningFailed", "full")])
    assert (found.reason, found.message, found.remedy) == ("ChecksumMismatch", "another", "this")
    assert str(found) == "another [ChecksumMismatch]. Try: this"


def test_a_pod_that_cannot_run_comes_before_the_claim():
    body = datavolume("ImportScheduled", ready=("Pending", "it waits"))
    found = blocker_of(
        body, Filling(pod=pod("no room", node=""), claim=claim()), [warning("ProvisioningFailed", "full")]
    )
    assert found.reason == "Unschedulable"
    assert "no room" in found.message


def test_what_passes_by_itself_is_told_last():
    body = datavolume("ImportScheduled")
    filling = Filling(pod=pod(waiting={"reason": "ContainerCreating"}), claim=claim())
    assert blocker_of(body, filling, [warning("ProvisioningFailed", "full")]).reason == "ProvisioningFailed"
    assert blocker_of(body, filling, []).reason == "ContainerCreating"


def test_of_several_warnings_the_newest_counts():
    events = [warning("ProvisioningFailed", "once"), warning("Noise", "nothing"), warning("ProvisioningFailed", "now")]
    assert blocker_of(datavolume("Pending"), Filling(claim=claim()), events).message == "Claim c: now"


@pytest.mark.parametrize("phase", ["WaitForFirstConsumer", "PendingPopulation"])
def test_a_consumer_is_waited_for(phase):
    found = blocker_of(datavolume(phase), Filling(claim=claim()), [])
    assert found.reason == phase
    assert "cdi.kubevirt.io/storage.bind.immediate.requested" in found.remedy


def test_a_consumer_that_is_there_is_not_waited_for():
    chosen = claim(**{"volume.kubernetes.io/selected-node": "node"})
    body = datavolume("PendingPopulation", ready=("Pending", "the prime is made"))
    assert blocker_of(body, Filling(claim=chosen), []).message == "the prime is made"


def test_its_own_words_where_there_are_no_others():
    body = datavolume("Pending", ready=("NotFound", "there is no Secret s. Try: create it"))
    found = blocker_of(body, Filling(), [])
    assert (found.reason, found.remedy) == ("NotFound", "create it")


def test_what_is_told_of_a_pod():
    facts = dict(pod_facts(pod(**PULLED)))
    assert facts["Pod"] == "importer-golden"
    assert facts["Node"] == "node"
    assert facts["Held up"].startswith("failed to pull image: its/image:1")
    ended = dict(pod_facts(pod(terminated={"reason": "OOMKilled", "exitCode": 137})))
    assert ended["Held up"] == ""
    assert ended["Ended"] == "OOMKilled (exit status 137)"
