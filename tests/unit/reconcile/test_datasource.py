from __future__ import annotations

from dataclasses import replace

import pytest

from cdi.api.validation import parse
from cdi.reconcile.datasource import reconcile_data_source
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.settings import Platform
from cdi.reconcile.types import PVC
from tests.unit.reconcile.simulation import HTTP, Objects, Simulation, data_volume


def source(name, *, pvc=None, ref=None, snapshot=None, namespace="default", status=None):
    spec = {}
    if pvc:
        spec["pvc"] = {"namespace": "default", "name": pvc}
    if ref:
        spec["dataSource"] = {"namespace": ref[0], "name": ref[1]}
    if snapshot:
        spec["snapshot"] = {"namespace": "default", "name": snapshot}
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"name": name, "namespace": namespace, "uid": f"{name}-uid"},
        "spec": {"source": spec},
    }
    if status:
        body["status"] = status
    return parse(body)


@pytest.fixture
def objects():
    objects = Objects()
    objects.sources["default", "end"] = source("end", pvc="golden")
    objects.sources["default", "pointer"] = source("pointer", ref=("default", "end"))
    objects.sources["default", "empty"] = source("empty")
    objects.claims["default", "golden"] = PVC(
        namespace="default",
        name="golden",
        uid="g",
        phase="Bound",
        labels={"instancetype.kubevirt.io/default-instancetype": "u1", "x": "y"},
    )
    return objects


@pytest.mark.parametrize(
    ("data_source", "status", "reason"),
    [
        (source("s", pvc="golden"), "True", "Ready"),
        (source("s", ref=("default", "end")), "True", "Ready"),
        (source("s", pvc="missing"), "False", "NotFound"),
        (source("s", ref=("default", "missing")), "False", "NotFound"),
        (source("s"), "False", "NoSource"),
        (source("s", ref=("default", "empty")), "False", "NoSource"),
        (source("s", ref=("default", "s")), "False", "SelfReference"),
        (source("s", ref=("other", "end")), "False", "CrossNamespaceReference"),
        (source("s", ref=("default", "pointer")), "False", "MaxReferenceDepthReached"),
        (source("s", snapshot="x"), "False", "SnapshotNotReady"),
    ],
)
def test_every_reason_has_its_word(objects, data_source, status, reason):
    plan = reconcile_data_source(data_source, objects, Platform(), 0.0)
    ready = plan.status["conditions"][0]
    assert (ready["type"], ready["status"], ready["reason"]) == ("Ready", status, reason)
    if status == "True":
        assert plan.status["source"] == {"pvc": {"namespace": "default", "name": "golden"}}
        assert plan.actions[0].labels == {"instancetype.kubevirt.io/default-instancetype": "u1"}


@pytest.mark.parametrize(("member", "name"), [("pvc", "golden"), ("dataSource", "end")])
def test_an_empty_namespace_is_that_of_the_datasource(objects, member, name):
    body = source("s").to_dict() | {"spec": {"source": {member: {"namespace": "", "name": name}}}}
    plan = reconcile_data_source(parse(body), objects, Platform(), 0.0)
    assert plan.status["source"] == {"pvc": {"namespace": "default", "name": "golden"}}
    assert plan.status["conditions"][0]["reason"] == "Ready"


def test_it_is_ready_only_when_its_datavolume_is(objects):
    body = data_volume(HTTP, name="golden")
    body["status"] = {"phase": "ImportInProgress"}
    objects.volumes["default", "golden"] = parse(body)
    ready = reconcile_data_source(source("s", pvc="golden"), objects, Platform(), 0.0).status["conditions"][0]
    assert (ready["status"], ready["reason"]) == ("False", "ImportInProgress")


def test_what_is_written_stays(objects):
    status = dict(reconcile_data_source(source("s", pvc="golden"), objects, Platform(), 0.0).status)
    again = reconcile_data_source(source("s", pvc="golden", status=status), objects, Platform(), 99.0)
    assert again.status is None


class CountingObjects:
    """Objects that count how often a DataSource is looked up."""

    def __init__(self, objects):
        self._objects = objects
        self.lookups = 0

    def __getattr__(self, name):
        return getattr(self._objects, name)

    def data_source(self, namespace, name):
        self.lookups += 1
        return self._objects.data_source(namespace, name)


def test_one_reconcile_resolves_the_source_once():
    sim = Simulation(data_volume(None, sourceRef={"kind": "DataSource", "name": "golden-source"}))
    counting = CountingObjects(sim.objects)
    # There is a new event, whose text names the source as well.
    plan = reconcile(replace(sim.context(), objects=counting))
    assert plan.events
    assert counting.lookups == 1


def test_a_datavolume_waits_for_its_datasource(objects):
    sim = Simulation(data_volume(None, sourceRef={"kind": "DataSource", "name": "golden-source"}))
    sim.run()
    assert sim.status["phase"] == "Pending"
    assert "DataSource default/golden-source does not exist" in sim.detail["message"]
    sim.objects.sources["default", "golden-source"] = source("golden-source", ref=("default", "golden-source"))
    assert sim.run().detail["reason"] == "SelfReference"
    sim.objects.sources["default", "golden-source"] = source("golden-source", pvc="golden")
    sim.add_claim("golden")
    assert sim.run().status["phase"] == "Succeeded"
