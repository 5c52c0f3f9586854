"""Tests of the invariants of attempts: each of them can fail."""

from __future__ import annotations

import random

import pytest

from cdi.api.errors import ChecksumMismatch, SourceUnreachable
from cdi.api.job import Failure
from cdi.api.kinds import CLAIMS, NAMESPACES, PODS, Object
from cdi.reconcile.datavolume.attempts import ANNOTATION, AttemptHistory
from tests.simulation.api_server import ApiServer
from tests.simulation.attempts import AttemptInvariants
from tests.simulation.cluster import Cluster
from tests.simulation.virtual_time import START


class Watched:
    """A PVC whose attempts are watched."""

    def __init__(self) -> None:
        self.server = ApiServer(lambda: "2026-01-01T00:00:00Z")
        self.cluster = Cluster(self.server, random.Random(0), lambda: 0.0, lambda: "")
        self.invariants = AttemptInvariants(self.cluster, steady_clock=True)
        self.found: list[str] = []
        self.server.listeners.append(self._check)
        self.server.perform("create", NAMESPACES, {"metadata": {"name": "n"}}, client="setup")
        spec = {"resources": {"requests": {"storage": "1Gi"}}}
        body = {"metadata": {"namespace": "n", "name": "c"}, "spec": spec}
        self.claim = self.server.perform("create", CLAIMS, body, client="controller-1")

    def _check(self, *change) -> None:
        self.found += self.invariants.attempts_are_counted_once(*change)
        self.found += self.invariants.retry_limits_hold(*change)

    def record(self, **history) -> None:
        text = AttemptHistory(**history).write()
        self.cluster.change(CLAIMS, self.claim, metadata={"annotations": {ANNOTATION: text}}, client="controller-1")

    def start(self, number: int) -> Object:
        annotations = {
            "cdi.kubevirt.io/attempt": str(number), "cdi.kubevirt.io/ownerUID": self.claim["metadata"]["uid"]
        }  # fmt: skip
        metadata = {
            "namespace": "n", "name": f"p{number}", "labels": {"cdi.kubevirt.io": "importer"},
            "annotations": annotations,
        }  # fmt: skip
        return self.server.perform("create", PODS, {"metadata": metadata, "spec": {}}, client="controller-1")

    def end(self, pod: Object) -> None:
        self.cluster.change(PODS, pod, status={"phase": "Failed"})


@pytest.fixture()
def watched() -> Watched:
    return Watched()


def failed(error=SourceUnreachable, **more):
    return {"failure": Failure.from_error(error("it failed")), **more}


def test_attempts_that_are_counted_and_repeated_after_their_delay_violate_nothing(watched):
    watched.end(watched.start(1))
    watched.record(**failed(attempt=1, failures=1, ended=START - 1))
    watched.end(watched.start(2))
    watched.record(attempt=2, done=True)
    assert watched.found == []


def test_an_attempt_that_is_counted_twice_is_found(watched):
    watched.record(**failed(attempt=1, failures=1))
    watched.record(**failed(attempt=1, failures=2))
    assert watched.found == ["attempt 1 of PVC c was counted as 1 failures"]


def test_attempts_that_go_back_are_found(watched):
    watched.record(attempt=2)
    watched.record(attempt=1)
    assert watched.found == ["the attempts of PVC c went from 2 back to 1"]


def test_a_pod_for_an_attempt_that_was_recorded_is_found(watched):
    watched.record(attempt=1)
    watched.start(1)
    assert watched.found == ["pod p1 was created for attempt 1, which was recorded before"]


def test_a_pod_before_the_end_of_the_last_attempt_is_recorded_is_found(watched):
    watched.end(watched.start(1))
    watched.start(2)
    assert watched.found == ["pod p2 was created while the end of attempt 1 in pod p1 is not recorded"]


def test_the_end_of_a_pod_that_is_gone_need_not_be_recorded(watched):
    watched.end(watched.start(1))
    watched.server.remove(PODS, "n", "p1", client="drain", options={"gracePeriodSeconds": 0})
    watched.start(2)
    assert watched.found == []


def test_a_pod_after_a_final_failure_is_found(watched):
    watched.record(**failed(ChecksumMismatch, attempt=1, failures=1))
    watched.start(2)
    assert watched.found == ["pod p2 was created after the final failure ChecksumMismatch"]


def test_a_pod_before_its_delay_has_passed_is_found(watched):
    for number in (1, 2, 3):
        watched.record(**failed(attempt=number, failures=number, ended=START - 1))
    watched.start(4)
    assert watched.found == ["pod p4 was created 1.0 s after failure 3, not 3.0 s"]
