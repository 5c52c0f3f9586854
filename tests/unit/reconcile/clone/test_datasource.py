"""Tests that a DataSource of a snapshot is ready when the snapshot is."""

from __future__ import annotations

import pytest

from cdi.api.validation import parse
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.datasource import reconcile_data_source
from cdi.reconcile.settings import Platform
from tests.unit.reconcile.simulation import Objects

LABEL = "instancetype.kubevirt.io/default-preference"


class Clones:
    def __init__(self, snapshot):
        self.found = snapshot

    def snapshot(self, namespace, name):
        assert (namespace, name) == ("gold", "kept")
        return self.found


def of(**facts):
    return Snapshot(namespace="gold", name="kept", uid="s", labels={LABEL: "fedora", "app": "x"}, **facts)


@pytest.mark.parametrize(
    ("snapshot", "status", "reason", "says"),
    [
        (None, "False", "NotFound", "VolumeSnapshot gold/kept"),
        (of(error="no space"), "False", "SnapshotNotReady", "no space"),
        (of(ready=True), "True", "Ready", "ready"),
    ],
)
def test_readiness(snapshot, status, reason, says):
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"name": "s", "namespace": "default", "uid": "u"},
        "spec": {"source": {"snapshot": {"namespace": "gold", "name": "kept"}}},
    }
    plan = reconcile_data_source(parse(body), Objects(), Platform(cluster=True), 0.0, Clones(snapshot))
    assert plan.status is not None
    ready = plan.status["conditions"][0]
    assert (ready["status"], ready["reason"]) == (status, reason)
    assert says in ready["message"]
    assert [action.labels for action in plan.actions] == ([{LABEL: "fedora"}] if snapshot is not None else [])
