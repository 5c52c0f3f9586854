"""Tests of how ``cdi explain`` predicts an import into a cluster from what it may read there."""

from __future__ import annotations

from cdi.api.errors import ClusterForbidden, QuotaExceeded, TargetUnsuitable
from cdi.api.kinds import CLAIMS, QUOTAS, STORAGE_CLASSES, VOLUME_SNAPSHOT_CLASSES
from cdi.api.names import ANN_ALLOW_CLAIM_ADOPTION
from cdi.explain.cluster import explain
from cdi.explain.live_reader import LiveReader
from cdi.explain.result import document
from tests.unit.controller.objects import body
from tests.unit.explain.test_dry_run_clones import Server, golden, wanted

MIB = 1 << 20
LATE = body(STORAGE_CLASSES, "late", provisioner="csi.example", volumeBindingMode="WaitForFirstConsumer")


class CountingServer(Server):
    """A server that counts how often each object and each list is read."""

    def __init__(self, *objects, forbidden=()):
        super().__init__(*objects)
        self.forbidden = forbidden
        self.reads = []

    def get(self, resource, namespace, name):
        self.reads.append((resource, namespace, name))
        return super().get(resource, namespace, name)

    def list(self, resource, namespace=None):
        self.reads.append((resource, namespace))
        if resource in self.forbidden:
            return ClusterForbidden(f"may not list {resource.plural}")
        return super().list(resource, namespace)


def limited(hard, used="0"):
    status = {"hard": {"requests.storage": hard}, "used": {"requests.storage": used}}
    return body(QUOTAS, "small", spec={"hard": status["hard"]}, status=status)


def test_the_place_and_the_plan_of_a_new_volume_are_known():
    told = explain(LiveReader(Server()), wanted(blank={}))
    place = dict(told.place)
    assert place["storage class"] == "csi, provisioner csi.example"
    assert place["binding"] == "immediate"
    assert place["claim"] == f"64 MiB ({64 * MIB} bytes), ReadWriteOnce, Filesystem"
    assert "temporary PVC" in place["filled"]
    assert (told.plan.path, told.refusal) == ("blank", None)


def test_a_volume_that_waits_for_its_consumer_is_explained_beyond_that_and_objects_are_read_once():
    server = CountingServer(LATE)
    told = explain(LiveReader(server), wanted("late", blank={}))
    assert dict(told.place)["binding"] == "waits for the first consumer"
    assert told.dry_run.worker is not None
    assert document(told)["waits"] is None
    assert len(server.reads) == len(set(server.reads))


def test_a_quota_counts_all_claims_and_the_pod():
    told = explain(LiveReader(Server(limited("100Mi"))), wanted(blank={}))
    assert isinstance(told.refusal, QuotaExceeded)
    assert "2 claims and a worker pod" in told.refusal.what
    assert "small" in told.refusal.what
    assert dict(explain(LiveReader(Server(limited("1Gi"))), wanted(blank={})).place)["quota"] == "leaves room"


def test_what_may_not_be_read_is_a_note_and_no_error():
    told = explain(LiveReader(CountingServer(forbidden=(QUOTAS,))), wanted(blank={}))
    assert told.refusal is None
    assert "not checked: may not list resourcequotas" in told.notes


def test_waiting_that_does_not_help_is_an_error():
    manifest = wanted("other", size=None, blank={})
    manifest["spec"]["storage"] = {"storageClassName": "other", "resources": {"requests": {"storage": "64Mi"}}}
    told = explain(LiveReader(Server()), manifest)
    assert isinstance(told.refusal, TargetUnsuitable)
    assert told.dry_run.reason == "ErrClaimNotValid"


def test_a_foreign_claim_of_the_name_is_an_error():
    claim = body(CLAIMS, "a", spec=golden()["spec"], status={"phase": "Bound", "capacity": {"storage": "64Mi"}})
    told = explain(LiveReader(Server(claim)), wanted(blank={}))
    assert told.refusal is not None
    assert told.report is None


def test_a_claim_that_is_adopted_waits_for_nothing():
    claim = body(CLAIMS, "a", spec=golden()["spec"], status={"phase": "Bound", "capacity": {"storage": "64Mi"}})
    manifest = wanted(blank={})
    manifest["metadata"]["annotations"] = {ANN_ALLOW_CLAIM_ADOPTION: "true"}
    told = explain(LiveReader(Server(claim)), manifest)
    assert (told.dry_run.waits, told.dry_run.phase, told.refusal) == ("", "Succeeded", None)
    assert told.notes == ("PVC a exists and has its content; nothing is imported",)


def test_a_clone_is_explained_with_its_strategy_and_without_a_source_report():
    snapshots = body(VOLUME_SNAPSHOT_CLASSES, "snap", driver="csi.example", deletionPolicy="Delete")
    told = explain(LiveReader(Server(golden(), snapshots)), wanted())
    assert (told.clone.strategy, told.report, told.refusal) == ("snapshot", None, None)
    assert document(told)["clone"]["source"] == "PVC ns/golden"
