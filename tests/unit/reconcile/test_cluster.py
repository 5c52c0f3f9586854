from __future__ import annotations

from tests.unit.reconcile.cluster_simulation import CLAIMS, COMPLETE, PODS, Cluster, dv


def test_populated():
    c = Cluster(dv("csi")).run()
    print(c.phases, c.status, c.annotations, [e.reason for e in c.events])
    assert c.status["phase"] == "Succeeded"
    assert c.content == COMPLETE
    assert c.names(CLAIMS) == {"a"}
    assert not c.names(PODS)


def test_direct():
    c = Cluster(dv("local")).run()
    print(c.phases, c.status, c.annotations, [e.reason for e in c.events])
    assert c.content == COMPLETE
    assert c.names(CLAIMS) == {"a"}
    assert not c.names(PODS)
