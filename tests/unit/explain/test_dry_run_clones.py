"""Tests of how ``cdi explain`` predicts a clone in a cluster, and of the text it prints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cdi.api.errors import CloneUnauthorised, NotFound
from cdi.api.kinds import (
    CLAIMS,
    CSI_DRIVERS,
    PODS,
    STORAGE_CLASSES,
    VOLUME_SNAPSHOT_CLASSES,
)
from cdi.explain.clone_facts import clone_facts
from cdi.explain.cluster_overlay import dry_run_in_cluster
from cdi.explain.live_reader import LiveReader
from tests.unit.controller.objects import body

MIB = 1 << 20
CLASSES = (
    body(STORAGE_CLASSES, "csi", provisioner="csi.example", allowVolumeExpansion=True),
    body(STORAGE_CLASSES, "tight", provisioner="csi.example"),
    body(STORAGE_CLASSES, "other", provisioner="other.example"),
)
SNAPSHOT_CLASS = body(VOLUME_SNAPSHOT_CLASSES, "snap", driver="csi.example", deletionPolicy="Delete")


def golden(namespace="ns", mode="Filesystem"):
    return body(
        CLAIMS,
        "golden",
        namespace,
        spec={
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": mode,
            "storageClassName": "csi",
            "volumeName": "pv-golden",
            "resources": {"requests": {"storage": "64Mi"}},
        },
        status={"phase": "Bound", "capacity": {"storage": "64Mi"}},
    )


def user(phase="Running"):
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "golden"}}]
    return body(PODS, "machine", spec={"volumes": volumes}, status={"phase": phase})


class Server:
    """A fake API server for a single reader."""

    def __init__(self, *objects, may=()):
        drivers = [body(CSI_DRIVERS, name) for name in ("csi.example", "other.example")]
        self.objects = [*CLASSES, *drivers, *objects]
        self.may = may
        self.client = self

    def run(self, answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _are(self, resource):
        return [
            one for one in self.objects if (one["apiVersion"], one["kind"]) == (resource.api_version, resource.kind)
        ]

    def get(self, resource, namespace, name):
        found = [one for one in self._are(resource) if one["metadata"]["name"] == name]
        found = [one for one in found if (one["metadata"].get("namespace") or None) == namespace]
        return found[0] if found else NotFound(f"{resource} {namespace}/{name}")

    def list(self, resource, namespace=None):
        return SimpleNamespace(
            items=[one for one in self._are(resource) if namespace in (None, one["metadata"].get("namespace"))]
        )

    def create(self, _resource, document):
        asked = document["spec"]["resourceAttributes"]
        what = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        return {"status": {"allowed": what in self.may}}


def wanted(storage_class="csi", size="64Mi", mode="Filesystem", **source):
    claim = {"storageClassName": storage_class, "accessModes": ["ReadWriteOnce"], "volumeMode": mode}
    if size is not None:
        claim["resources"] = {"requests": {"storage": size}}
    spec = {
        "source": source or {"pvc": {"namespace": "ns", "name": "golden"}},
        "pvc" if size is not None else "storage": claim,
    }
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "a", "namespace": "ns"},
        "spec": spec,
    }


def foreseen(server, manifest):
    return dry_run_in_cluster(LiveReader(server), manifest)


def explained(*objects, **options):
    found = foreseen(Server(golden(), *objects), wanted(**options))
    assert found.failure is None
    assert not found.waits
    return clone_facts(found.clone)


def test_a_snapshot_that_can_be_taken_is():
    told = explained(SNAPSHOT_CLASS)
    assert (told.source, told.strategy, told.fallbacks) == ("PVC ns/golden", "snapshot", ())
    assert told.why == "snapshot: the default"
    assert told.costs == (
        "VolumeSnapshot ns/tmp-snapshot-uid-golden, shared by all clones that are requested while it exists",
        "a volume restored from it by the storage; no pod reads or writes its content",
    )


def test_growth_is_a_cost():
    told = explained(SNAPSHOT_CLASS, size="96Mi")
    assert told.strategy == "snapshot"
    assert told.costs[-1].startswith("the volume is expanded from 64Mi to 96Mi")


def test_everything_that_is_in_the_way_is_told():
    told = explained(storage_class="tight", size="96Mi", mode="Block")
    assert told.strategy == "copy"
    assert told.why.startswith("copy instead of snapshot: there is no VolumeSnapshotClass for volumes of csi.example")
    reasons = [one.reason for one in told.fallbacks]
    assert reasons == ["NoVolumeSnapshotClass", "IncompatibleVolumeModes", "NoVolumeExpansion"]
    assert told.costs == (
        "two pods: one reads the source for all clones of it that run now and sends its data, "
        f"at most 64Mi ({64 * MIB} bytes), "
        "the other one writes the target",
    )


def test_a_source_in_use_is_waited_for_and_an_ended_pod_is_no_user():
    found = foreseen(Server(golden(), SNAPSHOT_CLASS, user()), wanted())
    assert found.reason == "CloneSourceInUse"
    assert "machine" in found.waits
    assert explained(SNAPSHOT_CLASS, user("Succeeded")).strategy == "snapshot"


def test_a_missing_source_is_waited_for():
    assert foreseen(Server(SNAPSHOT_CLASS), wanted()).reason == "CloneWithoutSource"


@pytest.mark.parametrize(
    ("may", "leave"),
    [((), False), (("persistentvolumeclaims",), False), (("datavolumes/source",), True), (("pods",), True)],
)
def test_out_of_another_namespace_it_goes_as_far_as_whoever_asks_may(may, leave):
    server = Server(golden("gold"), SNAPSHOT_CLASS, may=may)
    found = foreseen(server, wanted(pvc={"namespace": "gold", "name": "golden"}))
    assert isinstance(found.failure, CloneUnauthorised) is not leave
    told = clone_facts(found.clone)
    assert (told is not None and told.source == "PVC gold/golden" and told.strategy == "snapshot") is leave


def test_where_the_size_of_the_disk_counts_a_pod_would_look():
    server = Server(golden(), SNAPSHOT_CLASS)
    found = foreseen(server, wanted(size=None, mode="Block"))
    assert found.measured
    assert clone_facts(found.clone).strategy == "copy"
    assert found.claims[0]["spec"]["resources"]["requests"]["storage"] == "64Mi"
    assert not foreseen(server, wanted(size=None)).measured
