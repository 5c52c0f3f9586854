"""Properties of many host-assisted clones of one source: one source pod reads for all of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.reconcile.clone import host_assisted
from cdi.reconcile.clone.types import CloneAuthorization
from cdi.reconcile.settings import Retries
from tests.unit.reconcile.clone.clone_simulation import GOLDEN, CloneCluster, tickets_of
from tests.unit.reconcile.cluster_simulation import CLAIMS, DVS, NS, PODS, dv
from tests.unit.reconcile.simulation import failing

ALL = ("a", "b", "c", "d")
SOME = ALL[:3]
"""Enough to share source pods and to need a second one, in tests of many runs."""


class Crash(Exception):
    """The controller ends after an action."""


class ManyClones(CloneCluster):
    """DataVolumes of these names, cloned from one source."""

    def __init__(self, names=ALL, *, namespace="gold", storage_class="csi", **options):
        self.wanted = tuple(names)
        self.crashes_after = None
        self.done = 0
        self.readers = set()
        """The uids of all source pods so far."""
        self.most = 0
        """The largest number of targets that a source pod had at a time."""
        bodies = [
            dv(
                storage_class,
                source={"pvc": {"namespace": namespace, "name": "fedora"}},
                annotations={"cdi.kubevirt.io/storage.clone.token": f"leave-{name}"},
                form="pvc",
                mode="Filesystem",
                name=name,
                uid=f"dv-uid-{name}",
            )
            for name in names
        ]
        leave = {
            f"leave-{name}": CloneAuthorization(
                kind="PersistentVolumeClaim",
                namespace=namespace,
                name="fedora",
                target_namespace=NS,
                target_name=name,
            )
            for name in names
        }
        super().__init__(
            bodies[0], bodies=bodies[1:], namespace=namespace, strategy="copy", grants=leave,
            retries=Retries(budget=6), **options,
        )  # fmt: skip

    def sign_long_lived_token(self, grant):
        self.grants[f"lasting-{grant.target_name}"] = grant
        return f"lasting-{grant.target_name}"

    def act(self, action):
        super().act(action)
        self.done += 1
        if self.done == self.crashes_after:
            raise Crash

    def nature(self, choice=0):
        happened = super().nature(choice)
        for pod in self.sources():
            self.readers.add(pod["metadata"]["uid"])
            self.most = max(self.most, len(tickets_of(pod)))
            assert len(tickets_of(pod)) <= host_assisted.MAX_TARGETS
        return happened

    def sources(self):
        return [pod for pod in self.all(PODS) if pod["metadata"]["name"].endswith("-source-pod")]

    def round(self, number, losses=(), choices=(), lags=()):
        """Reconcile each target once, with a step of the cluster in between; return whether anything happened."""
        busy = False
        for place, name in enumerate(self.wanted):
            at = number * len(self.wanted) + place
            self.key = (NS, name)
            kept = losses[at] if at < len(losses) else None
            late = lags[at] if at < len(lags) else ()
            try:
                plan = self.step(None if kept is not None and kept < 0 else kept, repeat=(kept or 0) < 0, late=late)
                self.late = {}
                busy |= plan is not None and bool(plan.actions or plan.status is not None)
                self.settle_deletions()
            except Crash:
                busy = True
            busy |= self.nature(choices[at] if at < len(choices) else 0)
            busy |= at < max(len(losses), len(lags))
            self.now += 0.25
        return busy

    def run(self, rounds=600, **options):
        still = 0
        for number in range(rounds):
            still = 0 if self.round(number, **options) else still + 1
            if still > 4:
                return self
            if still:
                self.now += 30
        raise AssertionError([self.get(DVS, name) for name in self.wanted])

    def check(self, names):
        """Check that these DataVolumes have the source's content and that nothing else is left."""
        for name in names:
            self.key = (NS, name)
            assert self.get(DVS, name)["status"]["phase"] == "Succeeded", self.get(DVS, name)["status"]
            volume = self.get("persistentvolumes", self.get(CLAIMS, name)["spec"]["volumeName"], "")
            assert volume["content"] == GOLDEN
        assert self.names(CLAIMS) == {*names, "fedora"}
        assert not self.names(PODS)
        assert not self.names("secrets")


@pytest.mark.parametrize("storage_class", ["csi", "local"])
@pytest.mark.parametrize("namespace", ["gold", NS])
def test_one_reader_serves_all(namespace, storage_class):
    cluster = ManyClones(namespace=namespace, storage_class=storage_class)
    before = cluster.source_face()
    cluster.run()
    cluster.check(ALL)
    assert len(cluster.readers) == 1
    assert cluster.most > 1
    assert cluster.source_face() == before


class FastCluster(ManyClones):
    """A cluster in which everything that can happen has happened before the controller reconciles again."""

    def nature(self, choice=0):
        happened = False
        while super().nature(choice):
            happened = True
        return happened


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_certificate_goes_with_a_pod_that_runs_when_it_is_first_seen(storage_class):
    FastCluster(storage_class=storage_class).run().check(ALL)


def test_each_target_knows_its_reader_by_another_name():
    cluster = ManyClones().run()
    assert len({entry for _, entry, _ in cluster.certificates}) == len(ALL)
    assert len({name for _, _, name in cluster.certificates}) == len(ALL)
    assert all(name.startswith("clone.") for _, _, name in cluster.certificates)


@pytest.mark.parametrize("part", range(4))
def test_the_controller_may_be_gone_after_any_action(part):
    total = ManyClones(ALL[:2]).run().done
    for crash in range(1 + part, total + 1, 4):
        cluster = ManyClones(ALL[:2])
        before = cluster.source_face()
        cluster.crashes_after = crash
        cluster.run()
        cluster.check(ALL[:2])
        assert cluster.source_face() == before


def test_more_targets_than_one_reader_serves_have_another(monkeypatch):
    monkeypatch.setattr(host_assisted, "MAX_TARGETS", 2)
    cluster = ManyClones("abcde")
    cluster.run()
    cluster.check("abcde")
    assert len(cluster.readers) > 1


def test_when_there_may_be_no_more_readers_the_rest_waits(monkeypatch):
    monkeypatch.setattr(host_assisted, "MAX_TARGETS", 1)
    monkeypatch.setattr(host_assisted, "MAX_SOURCE_PODS", 1)
    cluster = ManyClones("abc")
    cluster.run()
    cluster.check("abc")
    assert len(cluster.readers) == 3


LAGS = st.tuples(st.sampled_from([0, 0, 1, 3]), st.sampled_from([0, 0, 2]), st.sampled_from([0, 0, 3]))
ENDS = st.sampled_from([failing("PeerUnreachable"), failing("PeerUnreachable", done=50)])


@settings(max_examples=25, deadline=None)
@given(
    script=st.lists(ENDS, max_size=3),
    losses=st.lists(st.integers(-1, 4), max_size=60),
    choices=st.lists(st.integers(0, 7), max_size=100),
    lags=st.lists(LAGS, max_size=60),
    most=st.sampled_from([1, 2, 24]),
)
def test_whatever_is_lost_repeated_or_late_each_target_has_the_source(script, losses, choices, lags, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_assisted, "MAX_TARGETS", most)
        cluster = ManyClones(SOME, script=script)
        before = cluster.source_face()
        cluster.run(losses=losses, choices=choices, lags=lags)
        cluster.check(SOME)
        assert cluster.source_face() == before


@settings(max_examples=20, deadline=None)
@given(
    rounds=st.integers(0, 12),
    gone=st.sets(st.sampled_from(SOME), min_size=1),
    killed=st.booleans(),
    choices=st.lists(st.integers(0, 7), max_size=60),
)
def test_of_targets_that_are_deleted_and_readers_that_are_lost_nothing_is_left(rounds, gone, killed, choices):
    cluster = ManyClones(SOME)
    before = cluster.source_face()
    for number in range(rounds):
        cluster.round(number, choices=choices)
    for name in gone:
        cluster.remove(DVS, name)
    if killed:
        for pod in cluster.sources():
            cluster.remove(PODS, pod["metadata"]["name"], namespace=pod["metadata"]["namespace"])
    cluster.run()
    cluster.check(set(SOME) - gone)
    assert cluster.source_face() == before


def test_a_reader_that_failed_is_made_anew_for_all():
    cluster = ManyClones()
    for number in range(200):
        cluster.round(number)
        running = [pod for pod in cluster.sources() if pod["status"]["phase"] == "Running" and len(tickets_of(pod)) > 1]
        if running:
            break
    (reader,) = running
    reader["status"]["phase"] = "Failed"
    cluster.run()
    cluster.check(ALL)
    assert len(cluster.readers) == 2


def test_a_pod_of_somebody_else_by_that_name_is_given_nothing():
    cluster = ManyClones(ALL[:2])
    cluster.create(
        {
            "kind": "Pod",
            "metadata": {"name": "uid-golden-source-pod", "namespace": "gold", "labels": {"cdi.kubevirt.io": "x"}},
            "spec": {"volumes": []},
        }
    )
    foreign = cluster.get(PODS, "uid-golden-source-pod", "gold")
    for number in range(60):
        cluster.round(number)
    assert not tickets_of(foreign)
    assert not [one for one in cluster.certificates if one[0] == foreign["metadata"]["uid"]]
    assert {cluster.get(DVS, name)["status"]["phase"] for name in ALL[:2]} == {"Succeeded"}
