"""Tests of finding the claim being filled, its pod, and its outcome."""

from __future__ import annotations

import json

import pytest

from cdi.api.errors import Retry
from cdi.api.job import Failure, Outcome
from cdi.api.kinds import CLAIMS, PODS
from cdi.remote.backend import share_of
from cdi.remote.worker_lookup import Filling, find_filling, outcome_of

PRIME, POD = "cdi.kubevirt.io/storage.populator.pvcPrime", "cdi.kubevirt.io/storage.import.importPodName"


def body(name, **annotations):
    return {"metadata": {"name": name, "uid": f"uid-of-{name}", "annotations": annotations}}


def finder(**objects):
    """Return a lookup over ``claims`` and ``pods``."""
    known = {(CLAIMS, each["metadata"]["name"]): each for each in objects.get("claims", ())}
    known |= {(PODS, each["metadata"]["name"]): each for each in objects.get("pods", ())}
    return lambda resource, namespace, name: known.get((resource, name)) if namespace == "n" else None


def test_nothing_is_there():
    assert find_filling(finder(), "n", "golden") == Filling()


def test_the_pod_of_the_claim_itself():
    found = find_filling(finder(claims=[body("golden")], pods=[body("importer-golden")]), "n", "golden")
    assert found.prime is None
    assert found.pod["metadata"]["name"] == "importer-golden"


def test_the_pod_of_the_prime_claim():
    claims = [body("golden", **{PRIME: "prime-1"}), body("prime-1", **{POD: "its-own"})]
    found = find_filling(finder(claims=claims, pods=[body("its-own"), body("importer-golden")]), "n", "golden")
    assert found.prime["metadata"]["name"] == "prime-1"
    assert found.pod["metadata"]["name"] == "its-own"


def test_a_prime_claim_that_is_gone_was_filled_by_a_pod_of_its_name():
    found = find_filling(finder(claims=[body("golden", **{PRIME: "prime-1"})]), "n", "golden")
    assert (found.prime, found.pod, found.pod_name) == (None, None, "importer-prime-1")


def ended(message):
    status = {"containerStatuses": [{"name": "importer", "state": {"terminated": {"message": message}}}]}
    return {**body("importer-golden"), "status": status}


def test_a_pod_says_how_it_ended():
    failure = Failure(code="SourceNotFound", message="gone", retry=Retry.ON_CHANGE, exit_status=3)
    outcome = Outcome(id="1", failure=failure)
    message = json.dumps({"message": "gone", "outcome": json.loads(outcome.to_json())})
    assert outcome_of(Filling(pod=ended(message))) == outcome


@pytest.mark.parametrize("message", ["", "killed", "{}", "[]", '{"outcome": 1}', '{"outcome": {"id": 1}}', None])
def test_a_pod_that_says_nothing_that_can_be_read(message):
    assert outcome_of(Filling(pod=ended(message))) is None


def test_what_was_recorded_is_told_when_the_pod_is_gone():
    notes = {
        f"cdi.kubevirt.io/image.{name}": text
        for name, text in {
            "format": "qcow2",
            "wrappers": "gz",
            "virtualSize": "1024",
            "digest": "sha256:00",
            "verifiedBy": "length, checksum",
        }.items()
    }
    found = outcome_of(Filling(claim=body("golden", **notes)))
    assert (found.format, found.wrappers, found.virtual_size) == ("qcow2", ("gz",), 1024)
    assert found.verified_by == ("length", "checksum")
    assert outcome_of(Filling(claim=body("golden"))) is None


@pytest.mark.parametrize(
    ("text", "share"), [("45.30%", 0.453), ("100.0%", 1.0), ("N/A", None), ("", None), ("-5%", 0.0), ("500%", 1.0)]
)
def test_progress_is_per_cent(text, share):
    found = share_of({"status": {"progress": text}})
    assert (found.fraction if found is not None else None) == pytest.approx(share)


def test_no_progress_is_told_yet():
    assert share_of({}) is None
