"""Lineage of volumes, recorded at cloning."""

from __future__ import annotations

import pytest

from cdi.api.annotations import GOLDEN_DEPRECATED, GOLDEN_END_OF_LIFE, GOLDEN_LAST_CLONED, GOLDEN_ORIGIN, GOLDEN_REVOKED
from cdi.api.dataimportcron import GoldenVersion
from cdi.api.golden import Origin, origin_of
from cdi.reconcile.actions import PatchObject
from cdi.reconcile.datavolume.lineage import inherited_origin, mark_clone, source_warnings
from cdi.reconcile.types import PVC
from tests.unit.reconcile.clone.clone_simulation import SNAPSHOTS, CloneCluster
from tests.unit.reconcile.clone.test_laws import begin
from tests.unit.reconcile.cluster_simulation import CLAIMS, NS, pvc
from tests.unit.reconcile.simulation import Simulation, data_volume

VERSION = GoldenVersion(name="fedora", digest="sha256:abc", state="Available")
NOW = 1_800_000_000.0


def origin(namespace=NS, name="fedora"):
    return Origin(namespace=namespace, cron="fedora-cron", version=name, digest="sha256:abc").to_json()


def source_of(cluster):
    kept = next((one for (kind, _, name), one in cluster.objects.items() if (kind, name) == (SNAPSHOTS, "kept")), None)
    return kept or cluster.get(CLAIMS, "fedora", cluster.namespace)


@pytest.mark.parametrize("way", ["snapshot", "copy", "snapshot, of a snapshot", "snapshot, from another namespace"])
def test_a_clone_of_a_version_records_its_origin_and_the_version_when_it_was_cloned(way):
    cluster = begin(way)
    source = source_of(cluster)
    mine = origin(cluster.namespace, source["metadata"]["name"])
    source["metadata"]["annotations"] |= {GOLDEN_ORIGIN.key: mine, GOLDEN_DEPRECATED.key: "2001-01-01T00:00:00Z"}
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.get(CLAIMS, "a")["metadata"]["annotations"][GOLDEN_ORIGIN.key] == mine
    assert GOLDEN_LAST_CLONED.key in source_of(cluster)["metadata"]["annotations"]
    warnings = [event for event in cluster.events if event.reason == "DeprecatedSource"]
    assert len(warnings) == 1
    assert warnings[0].type == "Warning"
    assert f"{cluster.namespace}/{source['metadata']['name']}" in warnings[0].message


def test_a_clone_that_a_user_requests_by_a_populator_records_its_origin():
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "VolumeCloneSource",
        "metadata": {"name": "c", "namespace": NS},
        "spec": {"source": {"apiGroup": "", "kind": "PersistentVolumeClaim", "name": "fedora"}},
    }
    cluster = CloneCluster(claim=pvc("csi", ref="c", kind="VolumeCloneSource"), bodies=[body])
    cluster.get(CLAIMS, "fedora")["metadata"]["annotations"] |= {GOLDEN_ORIGIN.key: origin(), GOLDEN_REVOKED.key: "backdoor"}
    cluster.run()
    assert cluster.get(CLAIMS, "a")["metadata"]["annotations"][GOLDEN_ORIGIN.key] == origin()
    assert GOLDEN_LAST_CLONED.key in cluster.get(CLAIMS, "fedora")["metadata"]["annotations"]
    assert "RevokedSource" in [event.reason for event in cluster.events]


def test_a_clone_of_a_clone_passes_the_origin_on_and_leaves_its_source_unchanged():
    cluster = begin("snapshot")
    descends = origin("images", "fedora-abc")
    cluster.get(CLAIMS, "fedora")["metadata"]["annotations"] |= {GOLDEN_ORIGIN.key: descends}
    cluster.run()
    assert cluster.get(CLAIMS, "a")["metadata"]["annotations"][GOLDEN_ORIGIN.key] == descends
    assert GOLDEN_LAST_CLONED.key not in cluster.get(CLAIMS, "fedora")["metadata"]["annotations"]


def test_a_clone_on_one_machine_records_its_origin():
    sim = Simulation(data_volume({"pvc": {"namespace": "default", "name": "src"}}))
    sim.add_claim("src", annotations={GOLDEN_ORIGIN.key: origin("default", "src"), GOLDEN_END_OF_LIFE.key: "1970-01-02T00:00:00Z"})
    sim.run()
    assert sim.claim.annotations[GOLDEN_ORIGIN.key] == origin("default", "src")
    assert "EndOfLifeSource" in [event.reason for event in sim.events]
    assert GOLDEN_LAST_CLONED.key in sim.objects.claims["default", "src"].annotations


def source(**annotations):
    return PVC(namespace=NS, name="fedora", uid="u", phase="Bound", annotations=annotations)


def test_the_time_of_a_clone_is_recorded_once_a_minute():
    own = {GOLDEN_ORIGIN.key: origin_of(VERSION, namespace=NS, cron="fedora-cron").to_json()}
    (first,) = mark_clone(source(**own), NOW)
    assert first == PatchObject(
        plural="persistentvolumeclaims",
        namespace=NS,
        name="fedora",
        uid="u",
        annotations={GOLDEN_LAST_CLONED.key: "2027-01-15T08:00:00Z"},
    )
    again = source(**own, **{GOLDEN_LAST_CLONED.key: "2027-01-15T08:00:00Z"})
    assert mark_clone(again, NOW + 59) == ()
    assert len(mark_clone(again, NOW + 60)) == 1
    # The clock was set back: the recorded time lies in the future.
    assert len(mark_clone(again, NOW - 3600)) == 1


@pytest.mark.parametrize(
    "text", ["", "{}", "null", "x" * 5000, '{"namespace": 1, "cron": "", "version": "", "digest": ""}']
)
def test_an_invalid_origin_is_not_passed_on(text):
    assert inherited_origin({GOLDEN_ORIGIN.key: text}) == {}
    assert mark_clone(source(**{GOLDEN_ORIGIN.key: text}), NOW) == ()


@pytest.mark.parametrize(
    ("annotations", "reasons"),
    [
        ({}, []),
        ({GOLDEN_DEPRECATED.key: "2027-01-15T08:00:01Z"}, []),
        ({GOLDEN_DEPRECATED.key: "2027-01-15T08:00:00Z"}, ["DeprecatedSource"]),
        ({GOLDEN_DEPRECATED.key: "2020-01-01T00:00:00Z", GOLDEN_END_OF_LIFE.key: "2030-01-01T00:00:00Z"}, ["DeprecatedSource"]),
        ({GOLDEN_DEPRECATED.key: "2020-01-01T00:00:00Z", GOLDEN_END_OF_LIFE.key: "2027-01-15T08:00:00Z"}, ["EndOfLifeSource"]),
        ({GOLDEN_END_OF_LIFE.key: "2020-01-01T00:00:00Z", GOLDEN_REVOKED.key: "bad" * 1000}, ["RevokedSource"]),
        ({GOLDEN_DEPRECATED.key: "soon", GOLDEN_END_OF_LIFE.key: "never"}, []),
    ],
)
def test_the_warning_about_a_source(annotations, reasons):
    events = list(source_warnings(annotations, "images/fedora-abc", NOW))
    assert [event.reason for event in events] == reasons
    assert all("images/fedora-abc" in event.message and len(event.message) < 1024 for event in events)
