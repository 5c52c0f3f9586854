"""Tests of the annotations that a clone writes for other programs, and of those of theirs that it reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cdi.api.kinds import PODS
from cdi.api.quantity import Quantity
from cdi.controller.clone_lister import InformerCloneLister
from cdi.reconcile.pods.roles import CONTAINER
from tests.unit.reconcile.clone.clone_simulation import MIB, SNAPSHOTS
from tests.unit.reconcile.clone.test_laws import begin, cloning
from tests.unit.reconcile.cluster_simulation import CLAIMS
from tests.unit.reconcile.simulation import failing

ADVISED = "cdi.kubevirt.io/storage.import.advisedRestoreSize"


def test_why_a_clone_failed_stands_on_its_claim_until_it_goes_on():
    cluster = begin("copy", [failing("PeerUnreachable")])
    seen = []
    for _ in range(100):
        cluster.step()
        cluster.settle_deletions()
        cluster.nature(0)
        cluster.now += 10
        told = cluster.annotations.get("cloneError") if cluster.get(CLAIMS, "a") is not None else None
        if not seen or told != seen[-1]:
            seen.append(told)
    assert cluster.status["phase"] == "Succeeded"
    assert len(seen) == 3 and seen[0] is seen[2] is None and "Try: " in seen[1], seen


@pytest.mark.parametrize(
    ("advised", "made"),
    [("3Gi", "3Gi"), ("1Mi", None), ("many", None), ("-1Gi", None)],
    ids=["more", "less", "no size", "none"],
)
def test_a_clone_without_a_size_asks_for_what_the_snapshot_advises(advised, made):
    plain, told = (cloning(size=None, kept=True)() for _ in range(2))
    told.objects[SNAPSHOTS, told.namespace, "kept"]["metadata"]["annotations"][ADVISED] = advised
    for cluster in (plain, told):
        cluster.consumer = True
        cluster.run()
        assert cluster.status["phase"] == "Succeeded", cluster.status
    sizes = [Quantity.parse(each.get(CLAIMS, "a")["spec"]["resources"]["requests"]["storage"]).bytes
             for each in (plain, told)]  # fmt: skip
    assert sizes[1] == (sizes[0] if made is None else Quantity.parse(made).bytes)


def test_where_the_storage_does_not_tell_a_snapshot_s_size_the_advice_is_enough():
    cluster = cloning(size=None, kept=True)()
    kept = cluster.objects[SNAPSHOTS, cluster.namespace, "kept"]
    kept["metadata"]["annotations"][ADVISED] = "1200Mi"
    del kept["size"]
    cluster.consumer = True
    cluster.run()
    asked = cluster.get(CLAIMS, "a")["spec"]["resources"]["requests"]["storage"]
    assert Quantity.parse(asked).bytes == 1200 * MIB


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}, "Unschedulable"),
        ({"phase": "Running", "containerStatuses": [{"name": CONTAINER, "state": {"running": {}}}]}, "Pod is running"),
        ({"phase": "Succeeded"}, "Completed"),
        ({"phase": "Failed"}, "Error"),
    ],
)  # fmt: skip
def test_what_the_pod_that_reads_is_at(status: dict[str, Any], reason: str):
    pod = {
        "metadata": {
            "name": "u-source-pod",
            "namespace": "gold",
            "uid": "p",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": "n"} if status["phase"] == "Running" else {},
        "status": status,
    }
    caches = SimpleNamespace(get=lambda resource, *_: pod if resource == PODS else None)
    reader = InformerCloneLister(caches, None, None).source_pod("gold", "u-source-pod")  # type: ignore[arg-type]
    assert reader is not None and reader.reason == reason
