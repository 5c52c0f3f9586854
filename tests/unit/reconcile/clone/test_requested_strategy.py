"""Tests of the clone strategy that a target's annotation requests."""

from __future__ import annotations

import pytest

from cdi.reconcile.clone.plan_annotation import ClonePlanRecord
from tests.unit.reconcile.clone.clone_simulation import GOLDEN, CloneCluster
from tests.unit.reconcile.clone.test_laws import cloning
from tests.unit.reconcile.cluster_simulation import CLAIMS, DVS, NS


def by_hand(strategy="snapshot", **notes):
    """Return a cluster in which a user creates the target claim, which names a VolumeCloneSource."""
    cluster = CloneCluster(strategy=strategy)
    cluster.remove(DVS, "a")
    source = {"kind": "PersistentVolumeClaim", "name": "fedora"}
    cluster.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeCloneSource",
            "metadata": {"name": "of-fedora", "namespace": NS},
            "spec": {"source": source},
        }
    )
    cluster.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": "a",
                "namespace": NS,
                "annotations": {f"cdi.kubevirt.io/{name}": text for name, text in notes.items()},
            },
            "spec": {
                "storageClassName": "csi",
                "volumeMode": "Filesystem",
                "dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeCloneSource", "name": "of-fedora"},
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    return cluster


@pytest.mark.parametrize("requested", ["csi-clone", "copy", "snapshot"])
@pytest.mark.parametrize("profile", ["csi-clone", "copy", "snapshot"])
def test_a_claim_is_cloned_as_its_annotation_requests(requested, profile):
    cluster = by_hand(profile, cloneType=requested).run()
    assert cluster.content == GOLDEN
    assert cluster.annotations["cloneType"] == requested
    assert cluster.annotations["clonePhase"] == "Succeeded"
    assert "cloneFallbackReason" not in cluster.annotations
    record = ClonePlanRecord.parse(cluster.annotations["storage.clone.record"])
    assert "cloneType" in record.message


@pytest.mark.parametrize("requested", ["csi-clone", "copy", "snapshot"])
def test_a_datavolume_passes_its_annotation_on_to_the_claim(requested):
    other = "copy" if requested != "copy" else "snapshot"
    cluster = cloning(strategy=other, annotations={"cdi.kubevirt.io/cloneType": requested})().run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.content == GOLDEN
    assert cluster.annotations["cloneType"] == requested


def test_a_requested_strategy_that_is_impossible_falls_back_to_copying_with_the_reason():
    notes = {"cdi.kubevirt.io/cloneType": "csi-clone"}
    cluster = cloning("fixed", size="2Gi", annotations=notes)().run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.annotations["cloneType"] == "copy"
    assert cluster.annotations["cloneFallbackReason"] == "No volume expansion is possible"
    assert "NoVolumeExpansion" in [event.reason for event in cluster.events]
    assert cluster.get(DVS, "a")["metadata"]["annotations"]["cdi.kubevirt.io/cloneType"] == "copy"


@pytest.mark.parametrize(("requested", "profile"), [("", "csi-clone"), ("csi-clone", "copy")])
def test_a_plan_that_is_made_anew_heeds_the_request_and_not_what_was_in_use(requested, profile):
    cluster = by_hand(profile, **({"cloneType": requested} if requested else {}))
    cluster.step()
    record = ClonePlanRecord.parse(cluster.annotations["storage.clone.record"])
    assert cluster.annotations["cloneType"] == record.strategy == "csi-clone"
    assert record.requested == requested
    cluster.objects.pop((CLAIMS, NS, "prime-" + cluster.claim(NS, "a").uid))
    cluster.pods_of_source = ["holder"]
    cluster.step()
    assert "storage.clone.record" not in cluster.annotations
    assert cluster.annotations.get("cloneType", "") == requested


@pytest.mark.parametrize("requested", ["smart", "x" * 5000, "COPY"])
def test_an_unknown_strategy_waits_until_it_is_corrected(requested):
    cluster = by_hand(cloneType=requested)
    cluster.run()
    assert cluster.annotations["clonePhase"] == "Error"
    told = cluster.annotations["cloneError"]
    assert told.startswith(f"unknown strategy/source {requested[:40]}") and "Try: set it to" in told
    assert len(told) < 1000
    assert cluster.names(CLAIMS) == {"a", "fedora"}
    cluster.get(CLAIMS, "a")["metadata"]["annotations"]["cdi.kubevirt.io/cloneType"] = "copy"
    cluster.run()
    assert cluster.content == GOLDEN
    assert cluster.annotations["clonePhase"] == "Succeeded"
