"""Tests of retries: a failure is shown as KubeVirt's CDI shows it until bytes flow again, and is retried."""

from __future__ import annotations

import copy
import json

import pytest

from cdi.api.errors import Conflict, Retry, by_code
from cdi.api.job import Failure, Progress
from cdi.reconcile.actions import RequireVersion, StartWorker
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.create_claim import RECREATION_DELAY
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.settings import CLUSTER_RETRIES, Retries
from tests.unit.reconcile.cluster_simulation import CLAIMS, NS, PODS, Cluster, dv, pvc
from tests.unit.reconcile.simulation import Simulation, failing

UNREACHABLE = Failure(code="SourceUnreachable", message="no connection to s:80. Try: look", retry=Retry.BACKOFF)
SOURCES = {
    "http": {"http": {"url": "http://s/i"}},
    "s3": {"s3": {"url": "https://s/b/i"}},
    "gcs": {"gcs": {"url": "gs://b/i"}},
    "registry": {"registry": {"url": "docker://r/i:1"}},
}


def running_pod(cluster: Cluster) -> Cluster:
    for _ in range(60):
        if [pod for pod in cluster.all(PODS) if pod["status"]["phase"] == "Running"]:
            cluster.step()
            return cluster
        cluster.step()
        cluster.nature()
    raise AssertionError(cluster.status)


def asking(failure: Failure | None = None, fetched: int = 0) -> Progress:
    return Progress(phase="preparing", done=0, total=None, fetched=fetched, note="waiting 24 s", failure=failure)


def virtual_machine_status(cluster: Cluster) -> str:
    """Return what virt-controller shows for a DataVolume that a virtual machine waits for."""
    running = cluster.condition("Running")
    failing = running["status"] == "False" and running["reason"] in ("Error", "ImagePullFailed")
    return "DataVolumeError" if cluster.status["phase"] == "Failed" or failing else "Provisioning"


# --- a status that is ahead of the PVC ------------------------------------------------------------------------------


def test_a_data_volume_that_succeeded_is_not_taken_back_on_the_basis_of_an_outdated_pvc() -> None:
    cluster = Cluster(dv("csi"))
    while cluster.status.get("phase") != "Succeeded":
        cluster.step()
        cluster.nature()
    bound = cluster.get(CLAIMS, "a")
    outdated = copy.deepcopy(bound)
    outdated["status"]["phase"] = "Pending"
    cluster.objects[CLAIMS, NS, "a"] = outdated
    plan = reconcile(cluster.context())
    assert plan.status is not None
    assert plan.status["phase"] != "Succeeded"
    assert isinstance(plan.actions[0], RequireVersion)
    cluster.objects[CLAIMS, NS, "a"] = bound
    with pytest.raises(Conflict):
        cluster.act(plan.actions[0])
    assert reconcile(cluster.context()).status is None


def test_a_deleted_pvc_of_a_data_volume_that_succeeded_is_recreated_after_a_delay() -> None:
    cluster = Cluster(dv("csi"))
    while cluster.status.get("phase") != "Succeeded":
        cluster.step()
        cluster.nature()
    del cluster.objects[CLAIMS, NS, "a"]
    plan = reconcile(cluster.context())
    assert plan.status is not None
    assert plan.actions == (RequireVersion.of_absent_claim(NS, "a"),)
    assert plan.requeue_after == RECREATION_DELAY


# --- a worker that retries within its pod ---------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_worker_that_waits_after_a_failed_try_is_shown_as_failing(storage_class: str) -> None:
    cluster = running_pod(Cluster(dv(storage_class)))
    assert cluster.condition("Running")["reason"] == "Pod is running"
    cluster.events.clear()
    cluster.progress = asking(UNREACHABLE)
    cluster.step()
    running = cluster.condition("Running")
    assert (running["status"], running["reason"]) == ("False", "Error")
    assert running["message"] == f"Unable to connect to http data source: {UNREACHABLE.message}"
    assert (cluster.detail["reason"], cluster.status["phase"]) == ("SourceUnreachable", "ImportInProgress")
    assert virtual_machine_status(cluster) == "DataVolumeError"
    shown = cluster.annotations
    assert (shown["storage.condition.running"], shown["storage.condition.running.reason"]) == ("false", "Error")
    assert shown["storage.condition.running.message"] == running["message"]
    assert (shown["storage.pod.phase"], shown["storage.pod.ready"]) == ("Running", "false")
    assert [(event.type, event.reason) for event in cluster.events] == [("Warning", "Error")]
    assert [(event.type, event.reason) for event in cluster.claim_events] == [("Warning", "ErrImportFailed")]
    assert cluster.events[0].message == f"[SourceUnreachable] {running['message']}"


def test_it_is_shown_as_running_once_bytes_flow_again() -> None:
    cluster = running_pod(Cluster(dv("csi")))
    cluster.progress = asking(UNREACHABLE)
    cluster.step()
    cluster.progress = asking(fetched=1)
    cluster.step()
    running = cluster.condition("Running")
    assert (running["status"], running["reason"]) == ("True", "Pod is running")
    assert cluster.annotations["storage.pod.ready"] == "true"
    assert virtual_machine_status(cluster) == "Provisioning"


def test_the_same_failure_is_told_once_while_it_lasts() -> None:
    cluster = running_pod(Cluster(dv("csi")))
    cluster.progress = asking(UNREACHABLE)
    for _ in range(3):
        cluster.step()
    assert [event.reason for event in cluster.events].count("Error") == 1
    assert len(cluster.claim_events) == 1


# --- from one attempt to the next -----------------------------------------------------------------------------------


def test_the_failure_is_shown_until_the_next_attempt_gets_further() -> None:
    cluster = running_pod(Cluster(dv("csi"), script=[failing(), failing()]))
    phases = len(cluster.phases)
    while not cluster.status["restartCount"]:
        plan = cluster.step()
        if not cluster.nature():
            cluster.now += plan.requeue_after
        assert cluster.status["phase"] == "ImportInProgress"
    running_pod(cluster)
    assert set(cluster.phases[phases:]) == {"ImportInProgress"}
    assert (cluster.condition("Running")["status"], cluster.condition("Running")["reason"]) == ("False", "Error")
    assert cluster.annotations["storage.pod.restarts"] == "1"
    cluster.progress = asking(fetched=1)
    cluster.step()
    assert cluster.condition("Running")["reason"] == "Pod is running"


def test_what_keeps_the_next_attempts_pod_is_shown_instead() -> None:
    cluster = running_pod(Cluster(dv("local")))
    cluster.all(PODS)[0]["status"] = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
    while not cluster.status["restartCount"] or not cluster.names(PODS):
        plan = cluster.step()
        if not cluster.status["restartCount"] and not cluster.nature():
            cluster.now += plan.requeue_after
    condition = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}
    cluster.all(PODS)[0]["status"] = {"phase": "Pending", "conditions": [condition]}
    cluster.step()
    assert cluster.condition("Running")["reason"] == "Unschedulable"


def test_what_only_scratch_space_cures_is_no_failure() -> None:
    cluster = Cluster(dv("csi"), script=[failing("ScratchNeeded", Retry.ON_CHANGE)]).run()
    assert cluster.status["phase"] == "Succeeded"
    assert not [event for event in cluster.events if event.type == "Warning"]


# --- texts of failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "s3", "gcs"])
@pytest.mark.parametrize("code", ["SourceUnreachable", "SourceNotFound", "SourceUnauthorized", "SourceTlsUntrusted"])
def test_a_source_that_cannot_be_opened_is_named_by_its_kind(kind: str, code: str) -> None:
    running = _running_after(kind, code)
    assert running["reason"] == "Error"
    assert running["message"] == f"Unable to connect to {kind} data source: it failed. Try: again"


@pytest.mark.parametrize("code", ["SourceUnreachable", "SourceNotFound", "SourceUnauthorized", "SourceStalled"])
def test_an_image_that_a_registry_does_not_give_failed_to_be_pulled(code: str) -> None:
    running = _running_after("registry", code)
    assert running["reason"] == "ImagePullFailed"
    assert running["message"] == "Unable to process data: failed to pull image: it failed. Try: again"


@pytest.mark.parametrize(
    ("kind", "code", "reason", "words"),
    [
        (
            "registry",
            "DiskNotInImage",
            "Error",
            "Unable to process data: Unable to transfer source data to scratch space",
        ),
        ("http", "ImageCorrupt", "Error", "Unable to process data: it failed"),
        ("http", "SourceTruncated", "Error", "Unable to process data: it failed"),
        ("http", "ChecksumMismatch", "ChecksumError", "Unable to process data: checksum validation failed: it failed"),
        ("http", "TargetTooSmall", "Error", "DataVolume too small to contain image: it failed"),
        ("http", "TargetFull", "Error", "DataVolume too small to contain image: it failed"),
        ("http", "WorkerLost", "Error", "it failed"),
    ],
)
def test_other_failures_begin_with_what_the_importer_says_of_them(
    kind: str, code: str, reason: str, words: str
) -> None:
    running = _running_after(kind, code)
    assert (running["status"], running["reason"]) == ("False", reason)
    assert running["message"].startswith(words)


def _running_after(kind: str, code: str) -> dict[str, str]:
    body = dv("csi")
    body["spec"]["source"] = SOURCES[kind]
    cluster = running_pod(Cluster(body, script=[failing(code, by_code(code).retry)]))
    for _ in range(4):
        cluster.nature()
        cluster.step()
        if cluster.condition("Running")["reason"] in ("Error", "ImagePullFailed", "ChecksumError"):
            break
    return cluster.condition("Running")


# --- repeated failures ----------------------------------------------------------------------------------------------

MENDED_OUTSIDE = (
    "SourceNotFound",
    "SourceUnauthorized",
    "SourceForbidden",
    "SourceHostUnknown",
    "SourceTlsUntrusted",
    "SourceRefused",
    "SourceUnreachable",
    "SourceUnavailable",
)


@pytest.mark.parametrize("code", MENDED_OUTSIDE)
def test_what_the_world_outside_can_mend_is_tried_without_end_in_a_cluster(code: str) -> None:
    cluster = Cluster(dv("csi"), script=[failing(code, by_code(code).retry)] * 15).run()
    assert "Failed" not in cluster.phases
    assert (cluster.status["phase"], cluster.status["restartCount"]) == ("Succeeded", 15)
    # The kubelet restarts the container, with pauses of up to five minutes.
    assert len([one for one in cluster.log if isinstance(one, StartWorker)]) == 1


@pytest.mark.parametrize(
    "code", ["ImageCorrupt", "ImageUnsafe", "FormatUnsupported", "TargetTooSmall", "ChecksumMismatch"]
)
def test_what_only_another_image_or_spec_can_mend_ends_it_at_once(code: str) -> None:
    cluster = Cluster(dv("csi"), script=[failing(code, by_code(code).retry)]).run()
    assert cluster.status["phase"] == "Failed"
    assert len([one for one in cluster.log if isinstance(one, StartWorker)]) == 1


def test_on_one_machine_passing_faults_end_when_the_budget_is_spent() -> None:
    sim = Simulation(script=[failing()] * 50, retries=Retries(budget=3)).run()
    assert sim.detail["reason"] == "RetryBudgetSpent"


@pytest.mark.parametrize("retry", [Retry.BACKOFF, Retry.ON_CHANGE])
def test_pauses_grow_to_five_minutes_in_a_cluster(retry: Retry) -> None:
    failure = Failure(code="X", message="x", retry=retry)
    pauses = [
        AttemptHistory(attempt=n, failure=failure, failures=n).backoff("uid", CLUSTER_RETRIES) for n in range(1, 30)
    ]
    assert pauses[0] < pauses[4] < 300
    assert all(180 <= pause <= 300 for pause in pauses[10:])


def test_of_a_claim_without_a_datavolume_a_failed_try_is_told_once() -> None:
    by_hand = {"cdi.kubevirt.io/storage.import.endpoint": "http://s/i"}
    cluster = Cluster(claim=pvc("local", annotations=by_hand))
    for _ in range(60):
        if [pod for pod in cluster.all(PODS) if pod["status"]["phase"] == "Running"]:
            break
        cluster.step()
        cluster.nature()
    cluster.progress = asking(UNREACHABLE)
    for _ in range(3):
        cluster.step()
    warnings = [event.reason for event in cluster.events if event.type == "Warning"]
    assert (warnings, cluster.claim_events) == (["ErrImportFailed"], [])
    assert cluster.annotations["storage.condition.running.reason"] == "Error"


def test_a_history_that_another_version_wrote_is_read():
    failure = {"code": "X", "message": "m", "retry": Retry.BACKOFF, "tried": ["a"]}
    history = AttemptHistory.read(json.dumps({"attempt": 2, "failures": 1, "starts": 3, "failure": failure}))
    assert (history.attempt, history.failures, history.failure.code) == (2, 1, "X")
    assert AttemptHistory.read('{"attempt": "2"}') == AttemptHistory()
