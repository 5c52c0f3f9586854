from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import Retry
from cdi.api.job import Failure, Outcome
from cdi.reconcile.pods.status import worker_from_pod

CLAIM = "claim-uid"


def pod(status=None, **metadata):
    return {
        "metadata": {
            "name": "importer-a",
            "uid": "pod-uid",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"cdi.kubevirt.io": "importer"},
            "annotations": {"cdi.kubevirt.io/attempt": "3", "cdi.kubevirt.io/fingerprint": "f"},
            "ownerReferences": [{"kind": "PersistentVolumeClaim", "name": "a", "uid": CLAIM, "controller": True}],
            **metadata,
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "importer", "image": "r/cdi:1", "resources": {"limits": {"memory": "600M"}}}],
            "volumes": [],
        },
        "status": status or {"phase": "Pending"},
    }


def ended(code=0, message="", reason="Completed", **status):
    state = {"exitCode": code, "message": message, "reason": reason, "finishedAt": "2026-01-01T00:01:00Z"}
    return pod(
        {"phase": "Failed", "containerStatuses": [{"name": "importer", "state": {"terminated": state}}], **status}
    )


def words(outcome, **more):
    return json.dumps({"message": "Import Complete", "outcome": json.loads(outcome.to_json()), **more})


def waiting(reason, message=""):
    return pod(
        {
            "phase": "Pending",
            "containerStatuses": [{"name": "importer", "state": {"waiting": {"reason": reason, "message": message}}}],
        }
    )


def test_a_success():
    outcome = Outcome(id=CLAIM, digest="sha256:00", labels={"a": "b"})
    worker = worker_from_pod(ended(message=words(outcome)))
    assert (worker.running, worker.attempt, worker.fingerprint) == (False, 3, "f")
    assert worker.outcome == outcome
    assert worker.ended == worker.started + 60
    assert worker.pod.claim == CLAIM


def test_a_failure_is_the_workers_own():
    failure = Failure(code="SourceNotFound", message="gone", retry=Retry.ON_CHANGE, exit_status=3)
    worker = worker_from_pod(ended(3, words(Outcome(id=CLAIM, failure=failure)), "Error"))
    assert worker.outcome.failure == failure


def test_a_journal_is_handed_on():
    failure = Failure(code="SourceUnreachable", message="x", retry=Retry.BACKOFF)
    message = words(Outcome(id=CLAIM, failure=failure), journal='{"a":1}')
    assert worker_from_pod(ended(3, message, "Error")).journal == '{"a":1}'


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (3, Outcome(id=CLAIM)),
        (0, Outcome(id="another")),
        (0, Outcome(id=CLAIM, failure=Failure(code="X", message="", retry=Retry.NEVER))),
    ],
)
def test_a_success_counts_only_where_everything_agrees(code, outcome):
    failure = worker_from_pod(ended(code, words(outcome))).outcome.failure
    assert failure.code == "WorkerLost"


def test_the_last_words_of_a_worker_without_an_outcome_are_told():
    failure = worker_from_pod(ended(1, "line one\nsegmentation fault\n", "Error")).outcome.failure
    assert failure.code == "WorkerLost"
    assert "segmentation fault" in failure.message
    assert failure.retry is Retry.BACKOFF


def test_out_of_memory_names_the_limit():
    failure = worker_from_pod(ended(137, "", "OOMKilled")).outcome.failure
    assert (failure.code, failure.retry) == ("ResourceLimit", Retry.NEVER)
    assert "600M" in failure.message
    assert "podResourceRequirements" in failure.message


@pytest.mark.parametrize(
    ("reason", "code", "word"),
    [
        ("Evicted", "WorkerEvicted", "low on memory"),
        ("DeadlineExceeded", "WorkerLost", "DeadlineExceeded"),
        ("UnexpectedAdmissionError", "WorkerLost", "UnexpectedAdmissionError"),
    ],
)
def test_what_befell_the_whole_pod_is_named(reason, code, word):
    failure = worker_from_pod(pod({"phase": "Failed", "reason": reason, "message": "low on memory"})).outcome.failure
    assert failure.code == code
    assert failure.retry is Retry.BACKOFF
    assert word in failure.message
    assert "node-1" in failure.message


def test_a_sidecar_does_not_keep_an_attempt_going():
    body = ended(0, words(Outcome(id=CLAIM)))
    body["status"]["phase"] = "Running"
    body["status"]["containerStatuses"].append({"name": "istio-proxy", "state": {"running": {}}})
    assert worker_from_pod(body).running is False


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_images_that_cannot_be_pulled(reason):
    hold = worker_from_pod(waiting(reason, "manifest unknown")).pod.hold
    assert hold.reason == "ImagePullFailed"
    assert "r/cdi:1" in hold.message
    assert "manifest unknown" in hold.message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (waiting("ContainerCreating"), "ContainerCreating"),
        (waiting("CreateContainerConfigError", "secret not found"), "CreateContainerConfigError"),
        (pod({"phase": "Pending"}), "ContainerCreating"),
        (pod({"phase": "Running", "reason": "NodeLost"}), "NodeLost"),
        (pod(deletionTimestamp="2026-01-01T00:00:05Z"), "Terminating"),
    ],
)
def test_what_holds_a_pod_is_named(body, reason):
    worker = worker_from_pod(body)
    assert worker.running
    assert worker.pod.hold.reason == reason


def test_the_schedulers_own_words():
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes\nare free"}
    body = pod({"phase": "Pending", "conditions": [said]})
    body["spec"].pop("nodeName")
    worker = worker_from_pod(body)
    assert worker.pod.hold.reason == "Unschedulable"
    assert "0/3 nodes are free" in worker.pod.hold.message
    assert worker.pod.scheduled is False


def test_a_pod_on_a_lost_node():
    running = {"phase": "Running", "containerStatuses": [{"name": "importer", "state": {"running": {}}}]}
    assert worker_from_pod(pod(running)).pod.hold is None
    hold = worker_from_pod(pod(running), node_lost=True).pod.hold
    assert hold.reason == "NodeLost"
    assert "node-1" in hold.message
    kept = worker_from_pod(pod(running, deletionTimestamp="2026-01-01T00:00:05Z"), node_lost=True).pod.hold
    assert "delete its Node object" in kept.message


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {}},
        {"annotations": {}},
        {"annotations": {"cdi.kubevirt.io/attempt": "-1"}},
        {"annotations": {"cdi.kubevirt.io/attempt": "9" * 40}},
        {"ownerReferences": []},
        {"ownerReferences": [{"kind": "Job", "uid": "x", "controller": True}]},
    ],
)
def test_other_pods_are_no_workers(change):
    assert worker_from_pod(pod(**change)) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(
    message=st.one_of(
        st.text(max_size=200),
        JSON.map(json.dumps),
        JSON.map(lambda value: json.dumps({"outcome": value, "journal": value})),
        st.integers(0, 400).map(lambda cut: words(Outcome(id=CLAIM))[:cut]),
        st.just("[" * 9000),
        st.just('{"outcome":' * 2000),
    ),
    code=st.sampled_from([0, 1, 137, None]),
)
def test_whatever_a_pod_says_at_the_end_is_an_outcome(message, code):
    whole = message == words(Outcome(id=CLAIM))
    outcome = worker_from_pod(ended(code, message)).outcome
    assert outcome.id == CLAIM
    assert (outcome.failure is None) == (whole and code == 0)


# --- restarts of the container ------------------------------------------------------------------------------------


def restarting(state, count, last=None, *, phase="Running", policy="OnFailure"):
    container = {"name": "importer", "state": state, "restartCount": count}
    if last is not None:
        container["lastState"] = {"terminated": last}
    body = pod({"phase": phase, "containerStatuses": [container]})
    body["spec"]["restartPolicy"] = policy
    return body


LOST = Failure(code="SourceUnreachable", message="gone", retry=Retry.BACKOFF, exit_status=3)


def terminated(code=3, failure=LOST):
    return {
        "exitCode": code,
        "reason": "Error",
        "message": words(Outcome(id=CLAIM, failure=failure)),
        "startedAt": "2026-01-01T00:01:00Z",
        "finishedAt": "2026-01-01T00:02:00Z",
    }


def test_each_run_of_the_container_is_an_attempt():
    first = worker_from_pod(restarting({"running": {"startedAt": "2026-01-01T00:01:00Z"}}, 0))
    assert (first.attempt, first.running, first.previous, first.pod.restarted) == (3, True, None, False)
    failed = worker_from_pod(restarting({"terminated": terminated()}, 0))
    assert (failed.attempt, failed.running, failed.outcome.failure) == (3, False, LOST)
    waits = worker_from_pod(restarting({"waiting": {"reason": "CrashLoopBackOff"}}, 0, terminated()))
    assert (waits.attempt, waits.running, waits.outcome, waits.ended) == (3, False, failed.outcome, failed.ended)
    again = worker_from_pod(restarting({"running": {"startedAt": "2026-01-01T00:03:00Z"}}, 1, terminated()))
    assert (again.attempt, again.running, again.outcome, again.pod.restarted) == (4, True, None, True)
    assert (again.previous.attempt, again.previous.outcome) == (3, failed.outcome)
    finished = {**terminated(0, None), "reason": "Completed"}
    over = worker_from_pod(restarting({"terminated": finished}, 1, terminated(), phase="Succeeded"))
    assert (over.attempt, over.running, over.outcome) == (4, False, Outcome(id=CLAIM))
    assert over.previous == again.previous


def test_a_pod_that_ended_as_a_whole_is_not_restarted():
    body = restarting({"terminated": terminated()}, 2, phase="Failed")
    assert not worker_from_pod(body).pod.restarts
    assert worker_from_pod(restarting({"terminated": terminated()}, 2)).pod.restarts


def test_restarts_of_a_pod_that_is_one_attempt_are_not_counted():
    worker = worker_from_pod(restarting({"terminated": terminated()}, 2, policy="Never"))
    assert (worker.attempt, worker.pod.restarts, worker.pod.restarted) == (3, False, False)


@pytest.mark.parametrize("count", [-1, "2", None, 1 << 40, 2.5])
def test_a_restart_count_that_is_none_is_ignored(count):
    assert worker_from_pod(restarting({"running": {}}, count)).attempt == 3


SCRATCH = Failure(code="ScratchNeeded", message="no", retry=Retry.ON_CHANGE, exit_status=6)


def test_a_container_that_repeats_its_end_is_not_another_attempt():
    last = {**terminated(6, SCRATCH), "message": words(Outcome(id=CLAIM, failure=SCRATCH), run=2)}
    states = ({"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": last})
    for count, state in enumerate(states, 2):
        worker = worker_from_pod(restarting(state, count, last))
        assert (worker.attempt, worker.running, worker.outcome.failure, worker.previous) == (4, False, SCRATCH, None)


@pytest.mark.parametrize("run", [0, -3, "2", None, 1 << 40])
def test_a_run_that_cannot_be_is_ignored(run):
    last = {**terminated(6, SCRATCH), "message": words(Outcome(id=CLAIM, failure=SCRATCH), run=run)}
    assert 3 <= worker_from_pod(restarting({"terminated": last}, 1)).attempt <= 4
