"""Tests of the deletion of temporary snapshots of clones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cdi.api.kinds import CLAIMS, VOLUME_SNAPSHOTS
from cdi.api.storageprofile import CloneStrategy
from cdi.controller.clone_lister import InformerCloneLister
from cdi.controller.reconcilers.clone_gc import SnapshotReconciler
from cdi.controller.reconcilers.registry import requests_for
from cdi.controller.request import Request
from cdi.reconcile.actions import DeleteObject
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ANN_TARGET, ANNOTATION, LABEL_TEMPORARY, ClonePlanRecord
from tests.unit.controller.objects import body, deleted, dependencies
from tests.unit.controller.test_lister import observed

SNAPSHOT = body(
    VOLUME_SNAPSHOTS,
    "tmp",
    labels={LABEL_TEMPORARY: "true"},
    annotations={ANN_SOURCE_UID: "uid-golden", ANN_TARGET: "ns/a"},
    spec={"source": {"persistentVolumeClaimName": "golden"}},
)
KEY = Request(kind="snapshot", namespace="ns", name="tmp")
RECORD = ClonePlanRecord(source="uid-golden", strategy=CloneStrategy.SNAPSHOT, namespace="ns", snapshot="tmp")


def stand_in(phase, field="dataSource"):
    made_of = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "tmp"}
    return body(CLAIMS, "prime-a", spec={field: made_of}, status={"phase": phase})


@pytest.fixture
def bench():
    found, caches = observed((VOLUME_SNAPSHOTS, SNAPSHOT))
    clock = SimpleNamespace(now=1000.0)
    clones = InformerCloneLister(caches, found, None)
    shared = dependencies(caches, lister=found, clones=clones, now=lambda: clock.now)
    temporaries = SnapshotReconciler(shared)
    return SimpleNamespace(
        caches=caches, plan=lambda: temporaries.plan(KEY), clock=clock,
        note=lambda it: caches.record_write(CLAIMS, it), drop=lambda name: caches._of(CLAIMS, "ns")._remove(("ns", name)),
    )  # fmt: skip


def is_deletion(plan):
    return [type(action) for action in plan.actions] == [DeleteObject]


def test_a_snapshot_that_no_clone_needs_goes_a_little_later(bench):
    plan = bench.plan()
    assert not plan.actions
    assert plan.requeue_after == 2
    bench.clock.now += 1
    assert bench.plan().requeue_after == 1
    bench.clock.now += 1
    assert is_deletion(bench.plan())


def test_one_that_is_needed_again_meanwhile_stays(bench):
    bench.plan()
    bench.clock.now += 5
    bench.note(body(CLAIMS, "a", annotations={ANNOTATION: RECORD.write()}, spec={}, status={"phase": "Pending"}))
    assert not bench.plan().actions
    bench.drop("a")
    assert bench.plan().requeue_after == 2


@pytest.mark.parametrize("field", ["dataSource", "dataSourceRef"])
def test_one_that_a_pending_claim_is_made_of_stays_whoever_made_that(bench, field):
    bench.note(stand_in("Pending", field))
    bench.plan()
    bench.clock.now += 60
    assert not bench.plan().actions
    assert bench.plan().requeue_after is None
    bench.note(stand_in("Bound", field))
    bench.plan()
    bench.clock.now += 2
    assert is_deletion(bench.plan())


def test_a_clock_that_was_set_back_keeps_it_no_longer(bench):
    bench.plan()
    bench.clock.now -= 3600
    assert bench.plan().requeue_after == 2


def test_a_claim_that_goes_is_news_for_the_snapshot_that_it_was_being_made_of(bench):
    gone = stand_in("Pending")
    bench.note(gone)
    assert KEY in requests_for(CLAIMS, deleted(gone), bench.caches)
