"""Tests of static volumes, and of volumes in use."""

from __future__ import annotations

import json

import pytest

from tests.unit.reconcile.cluster_simulation import CLAIMS, COMPLETE, DVS, PODS, Cluster, dv
from tests.unit.reconcile.simulation import failing
from tests.unit.reconcile.test_context_builder import until

STATIC = {"cdi.kubevirt.io/storage.checkStaticVolume": ""}
CLONE = {"pvc": {"namespace": "default", "name": "gone"}}


@pytest.mark.parametrize("storage_class", ["csi", "local"])
@pytest.mark.parametrize("source", [None, CLONE], ids=["import", "clone of what is gone"])
def test_a_volume_that_was_made_for_it_is_taken_as_it_is(storage_class, source) -> None:
    cluster = Cluster(dv(storage_class, annotations=STATIC, source=source))
    cluster.static_volume("restored", storage_class=storage_class)
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    claim = cluster.get(CLAIMS, "a")
    assert claim["spec"]["volumeName"] == "restored"
    assert "dataSourceRef" not in claim["spec"]
    assert cluster.annotations["storage.populatedFor"] == "a"
    assert cluster.get(DVS, "a")["metadata"]["annotations"]["cdi.kubevirt.io/storage.prePopulated"] == "a"
    assert cluster.status["progress"] == "N/A"
    assert "storage.persistentVolumeList" not in cluster.annotations
    assert not cluster.attempts
    assert not cluster.names(PODS)
    assert cluster.content == COMPLETE


@pytest.mark.parametrize(
    "volume",
    [{"size": "512Mi"}, {"storage_class": "local"}, {"phase": "Released"}],
    ids=["too small", "of another class", "of a claim that is gone"],
)
def test_one_that_does_not_fit_is_left_alone(volume) -> None:
    cluster = Cluster(dv("csi", annotations=STATIC))
    cluster.overlooked = True
    cluster.static_volume("other", **volume)
    assert cluster.run().status["phase"] == "Succeeded"
    assert cluster.get(CLAIMS, "a")["spec"]["volumeName"] != "other"
    assert cluster.attempts == 1


@pytest.mark.parametrize("phase", ["", "Pending"])
def test_one_that_kubernetes_has_not_looked_at_yet_counts(phase) -> None:
    """Otherwise the claim would be bound to it although it names a source, and fail."""
    cluster = Cluster(dv("csi", annotations=STATIC))
    cluster.overlooked = True
    cluster.static_volume("restored", phase=phase)
    until(cluster, lambda: cluster.get(CLAIMS, "a") is not None)
    assert json.loads(cluster.annotations["storage.persistentVolumeList"]) == ["restored"]
    assert "dataSourceRef" not in cluster.get(CLAIMS, "a")["spec"]


def test_one_that_was_made_for_a_claim_of_the_same_name_is_not_it() -> None:
    """A provisioner has made the volume, and Kubernetes has not processed it yet."""
    cluster = Cluster(dv("csi", annotations=STATIC))
    cluster.static_volume("other", phase="Pending", uid="of-an-earlier-claim")
    cluster.step()
    assert "dataSourceRef" in cluster.get(CLAIMS, "a")["spec"]


def test_nobody_looks_for_one_who_is_not_asked_to() -> None:
    cluster = Cluster(dv("csi"))
    cluster.static_volume("restored")
    cluster.step()
    assert "storage.persistentVolumeList" not in cluster.annotations
    assert "dataSourceRef" in cluster.get(CLAIMS, "a")["spec"]


def test_it_waits_for_its_volume_and_imports_nothing_meanwhile() -> None:
    cluster = Cluster(dv("csi-wait", annotations=STATIC))
    cluster.overlooked = True
    cluster.static_volume("b", storage_class="csi-wait")
    cluster.static_volume("a", storage_class="csi-wait", content="")
    cluster.run()
    assert json.loads(cluster.annotations["storage.persistentVolumeList"]) == ["a", "b"]
    assert cluster.status["phase"] == "Pending"
    assert "waiting to be bound to an existing volume: a, b" in cluster.detail["message"]


def test_a_claim_that_was_bound_to_another_volume_is_made_anew() -> None:
    cluster = Cluster(dv("csi", annotations=STATIC))
    cluster.overlooked = True
    cluster.static_volume("restored")
    until(cluster, lambda: (cluster.get(CLAIMS, "a") or {}).get("status", {}).get("phase") == "Bound")
    first = cluster.get(CLAIMS, "a")["metadata"]["uid"]
    cluster.overlooked = False
    cluster.run()
    claim = cluster.get(CLAIMS, "a")
    assert claim["metadata"]["uid"] != first
    assert claim["spec"]["volumeName"] == "restored"
    assert cluster.status["phase"] == "Succeeded"
    assert not cluster.attempts


# --- in use -------------------------------------------------------------------------------------------------------


def test_a_volume_that_somebody_has_is_not_written_into() -> None:
    cluster = Cluster(dv("local"))
    cluster.foreign = {"a": ("web-0",)}
    cluster.run()
    assert not cluster.names(PODS)
    assert cluster.detail["reason"] == "ImportTargetInUse"
    assert "Pod web-0 uses PVC a" in cluster.detail["message"]
    (event,) = [event for event in cluster.events if event.reason == "ImportTargetInUse"]
    assert event.type == "Warning"
    cluster.foreign = {}
    assert cluster.run().status["phase"] == "Succeeded"


def test_nor_between_two_attempts() -> None:
    cluster = Cluster(dv("local"), script=[failing()])
    until(cluster, lambda: cluster.attempts == 1)
    cluster.foreign = {"a": ("b", "c")}
    cluster.run()
    assert cluster.attempts == 1
    assert "Pods b, c use PVC a" in cluster.detail["message"]
    cluster.foreign = {}
    assert cluster.run().status["phase"] == "Succeeded"


def test_who_waits_for_a_claim_that_is_filled_elsewhere_is_not_in_the_way() -> None:
    cluster = Cluster(dv("csi"))
    cluster.foreign = {"a": ("virt-launcher",)}
    assert cluster.run().status["phase"] == "Succeeded"
