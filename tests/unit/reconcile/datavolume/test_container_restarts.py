"""Restarts of an importer's container by the kubelet: each is the next attempt, unless it needs another pod."""

from __future__ import annotations

import dataclasses

import pytest

from cdi.api.errors import Retry
from cdi.reconcile.actions import ObjectRef, StartWorker, StopWorker
from cdi.reconcile.settings import Retries
from tests.unit.reconcile.cluster_simulation import COMPLETE, PODS, Cluster, dv
from tests.unit.reconcile.simulation import End, failing

LOGIN = {"http": {"url": "http://server/x", "secretRef": "login"}}
RETAIN = {"cdi.kubevirt.io/storage.pod.retainAfterCompletion": "true"}


def starts(cluster):
    return [action for action in cluster.log if isinstance(action, StartWorker)]


def until(cluster, state, *, steps=60):
    """Let the cluster act until its pod's container is in a state: running, terminated or waiting."""
    for _ in range(steps):
        cluster.step()
        pods = cluster.all(PODS)
        status = pods[0]["status"].get("containerStatuses") if pods else None
        if status and state in status[0]["state"]:
            return pods[0]
        cluster.nature()
    raise AssertionError(cluster.status)


@pytest.mark.parametrize("storage_class", ["csi", "csi-wait", "local", "local-wait"])
@pytest.mark.parametrize("failure", [failing(), failing(retry=Retry.ON_CHANGE)], ids=["later", "on change"])
def test_a_restart_is_the_next_attempt(storage_class, failure):
    annotations = {"cdi.kubevirt.io/storage.bind.immediate.requested": ""}
    cluster = Cluster(dv(storage_class, annotations=annotations), script=[failure, failure, End()]).run()
    assert cluster.content == COMPLETE
    assert len(starts(cluster)) == 1
    assert cluster.status["restartCount"] == 2
    assert cluster.annotations["storage.pod.restarts"] == "2"


def test_the_failure_is_shown_until_the_restarted_worker_gets_further():
    cluster = Cluster(dv("local"), script=[failing()])
    until(cluster, "terminated")
    cluster.step()
    assert (cluster.status["phase"], cluster.condition("Running")["reason"]) == ("ImportInProgress", "Error")
    until(cluster, "waiting")
    cluster.step()
    assert (cluster.status["phase"], cluster.condition("Running")["reason"]) == ("ImportInProgress", "Error")
    until(cluster, "running")
    cluster.step()
    assert (cluster.status["phase"], cluster.condition("Running")["reason"]) == ("ImportInProgress", "Error")
    assert cluster.status["restartCount"] == 1
    assert cluster.run().status["phase"] == "Succeeded"


def test_the_end_of_a_run_that_was_not_observed_is_recorded_with_the_next():
    cluster = Cluster(dv("local"), script=[failing("First"), failing("Second")])
    until(cluster, "running")
    while cluster.attempts == 0 or "running" not in cluster.all(PODS)[0]["status"]["containerStatuses"][0]["state"]:
        cluster.nature()
    cluster.step()
    assert '"attempt":1' in cluster.annotations["storage.attempts"]
    assert '"code":"First"' in cluster.annotations["storage.attempts"]
    assert cluster.run().status["restartCount"] == 2


@pytest.mark.parametrize(
    "second", [End(), failing("Second"), failing("ImageCorrupt", Retry.NEVER)], ids=["success", "failure", "final"]
)
def test_an_attempt_that_was_not_observed_has_its_event_although_the_next_has_ended(second):
    cluster = Cluster(dv("local"), script=[failing("First"), second])
    until(cluster, "running")
    while cluster.attempts < 2:
        cluster.nature()
    cluster.step()
    expected = ["First", *([second.failure.code] if second.failure is not None else [])]
    assert cluster.status["restartCount"] == 1
    assert [
        event.message[1:].partition("]")[0] for event in cluster.claim_events if event.type == "Warning"
    ] == expected
    own = [event for event in cluster.events if event.reason == "Error"]
    assert [event.message[1:].partition("]")[0] for event in own] == [
        code for code in expected if code != "ImageCorrupt"
    ]
    cluster.run()
    assert sum("[First]" in event.message for event in cluster.events) == 1


@pytest.mark.parametrize("observed", [True, False], ids=["observed", "not observed"])
def test_an_attempt_has_one_event_whether_or_not_its_end_was_observed(observed):
    cluster = Cluster(dv("local"), script=[failing(code, message=code) for code in ("First", "Second")])
    until(cluster, "running")
    while cluster.attempts == 0 or "running" not in cluster.all(PODS)[0]["status"]["containerStatuses"][0]["state"]:
        cluster.nature()
        if observed:
            cluster.step()
    cluster.run()
    for code in ("First", "Second"):
        assert sum(f"[{code}]" in event.message for event in cluster.events) == 1
        assert sum(f"[{code}]" in event.message for event in cluster.claim_events) == 1


def test_a_pod_with_outdated_credentials_is_replaced():
    cluster = Cluster(dv("local", source=LOGIN), script=[failing(retry=Retry.ON_CHANGE)])
    cluster.add_input("Secret", "login", "accessKeyId", "secretKey")
    before = until(cluster, "waiting")["metadata"]["uid"]
    ref = ObjectRef(kind="Secret", namespace="default", name="login")
    cluster.inputs[ref] = dataclasses.replace(cluster.inputs[ref], version="2")
    cluster.run()
    assert [action.pod_uid for action in cluster.log if isinstance(action, StopWorker)][0] == before
    assert [action.attempt for action in starts(cluster)] == [1, 2]
    assert cluster.content == COMPLETE


def test_a_pod_of_another_template_is_replaced():
    cluster = Cluster(dv("local"), script=[failing()])
    until(cluster, "waiting")
    pods = dataclasses.replace(cluster.config.pods, image="example/cdi:2")
    cluster.config = dataclasses.replace(cluster.config, pods=pods)
    assert cluster.run().content == COMPLETE
    assert [action.pod["spec"]["containers"][0]["image"] for action in starts(cluster)] == [
        "example/cdi:1", "example/cdi:2",
    ]  # fmt: skip


def test_a_pod_without_scratch_space_is_replaced_by_one_that_has_it():
    cluster = Cluster(dv("local"), script=[failing("ScratchNeeded", Retry.ON_CHANGE)]).run()
    assert cluster.content == COMPLETE
    assert [action.attempt for action in starts(cluster)] == [1, 2]


@pytest.mark.parametrize("observed", [True, False], ids=["before the restart", "after the restart"])
@pytest.mark.parametrize("annotations", [{}, RETAIN], ids=["deleted", "retained"])
def test_a_final_failure_stays_final_when_the_container_is_restarted(observed, annotations):
    cluster = Cluster(dv("local", annotations=annotations), script=[failing("ImageCorrupt", Retry.NEVER)])
    until(cluster, "terminated")
    if observed:
        cluster.step()
        assert cluster.status["phase"] == "Failed"
    for _ in range(8 if annotations else 2):
        cluster.nature()
        cluster.step()
        assert cluster.status["phase"] == "Failed"
    assert len(starts(cluster)) == 1
    if annotations:
        assert cluster.names(PODS)
    else:
        assert not cluster.run().names(PODS)


def test_a_pod_whose_retry_budget_is_exhausted_is_deleted():
    body = dv("local", annotations=RETAIN)
    cluster = Cluster(body, script=[failing()] * 9, retries=Retries(budget=3)).run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.attempts == 3
    assert not cluster.names(PODS)


def test_an_upload_server_is_replaced():
    cluster = Cluster(dv("local", source={"upload": {}}), script=[failing()]).run()
    assert cluster.content == COMPLETE
    assert {action.pod["spec"]["restartPolicy"] for action in starts(cluster)} == {"Never"}
    assert len(starts(cluster)) == 2
