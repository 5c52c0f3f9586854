"""Properties of a cluster's volumes: lost, repeated or late steps lead to the same end and leave nothing behind."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdi.api.errors import Retry
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.settings import Retries
from tests.unit.reconcile.cluster_simulation import CLAIMS, COMPLETE, DVS, PODS, VOLUMES, Cluster, dv, pvc
from tests.unit.reconcile.simulation import End, failing

SOURCE = {"cdi.kubevirt.io/storage.import.endpoint": "http://server/image.qcow2"}
IMPORT_SOURCE = {
    "apiVersion": "cdi.kubevirt.io/v1beta1",
    "kind": "VolumeImportSource",
    "metadata": {"name": "s", "namespace": "default"},
    "spec": {"source": {"http": {"url": "http://server/image.qcow2"}}},
}
UPLOAD_SOURCE = {
    "apiVersion": "cdi.kubevirt.io/v1beta1",
    "kind": "VolumeUploadSource",
    "metadata": {"name": "u", "namespace": "default"},
    "spec": {"contentType": "kubevirt"},
}
UPLOAD = {"upload": {}}
IMMEDIATE = {"cdi.kubevirt.io/storage.bind.immediate.requested": ""}


def _claimed(**options):
    return lambda **more: Cluster(claim=pvc(**options), **more)


def _asked(*arguments, **options):
    return lambda **more: Cluster(dv(*arguments, **options), **more)


WAYS = {
    "populated": _asked("csi"),
    "populated, pvc form": _asked("csi", form="pvc"),
    "populated, block": _asked("csi", mode="Block"),
    "populated, waiting": _asked("csi-wait"),
    "populated, waiting, at once": _asked("csi-wait", annotations=IMMEDIATE),
    "direct": _asked("local"),
    "direct, waiting, at once": _asked("local-wait", annotations=IMMEDIATE),
    "annotated by hand": _claimed(annotations=SOURCE),
    "import source without a DataVolume": _claimed(ref="s"),
    "upload, populated": _asked("csi", source=UPLOAD),
    "upload, populated, block": _asked("csi", source=UPLOAD, mode="Block"),
    "upload, populated, waiting": _asked("csi-wait", source=UPLOAD),
    "upload, direct": _asked("local", source=UPLOAD),
    "upload, direct, waiting, at once": _asked("local-wait", source=UPLOAD, annotations=IMMEDIATE),
    "upload target by hand": _claimed(annotations={"cdi.kubevirt.io/storage.upload.target": ""}),
    "upload source without a DataVolume": _claimed(ref="u", kind="VolumeUploadSource"),
}
ENDS = st.sampled_from(
    [
        failing(),
        failing(done=50),
        failing("ScratchNeeded", Retry.ON_CHANGE),
        failing("ImageCorrupt", Retry.NEVER),
        End(labels={"instancetype.kubevirt.io/default-preference": "fedora"}),
        End(),
    ]
)


LAGS = st.tuples(st.sampled_from([0, 0, 1, 3, 6]), st.sampled_from([0, 0, 2]), st.sampled_from([0, 0, 3, 10]))
"""Steps by which claims, pods and volumes are seen late."""


def begin(way, script=()):
    cluster = WAYS[way](script=script, retries=Retries(budget=4), bodies=[IMPORT_SOURCE, UPLOAD_SOURCE])
    cluster.consumer = True
    return cluster


def outcome(cluster):
    """Return everything that must not depend on lost effects."""
    body = cluster.get(DVS, "a")
    conditions = (body or {}).get("status", {}).get("conditions", [])
    passing = (
        "storage.attempts",
        "storage.import.status",
        "pvcPrime",
        "PodName",
        "schedulable",
        "selected-node",
        "message",
    )
    annotations = {
        name: text for name, text in cluster.annotations.items() if not any(word in name for word in passing)
    }
    return {
        "phase": (body or {}).get("status", {}).get("phase"),
        "conditions": [(c["type"], c["status"], c["reason"]) for c in conditions],
        "annotations": annotations,
        "labels": cluster.get(CLAIMS, "a")["metadata"]["labels"],
        "content": cluster.content,
        "claims": cluster.names(CLAIMS),
        "volumes": len(cluster.all(VOLUMES)),
        "pods": cluster.names(PODS),
        "services": cluster.names("services"),
        "secrets": cluster.names("secrets"),
    }


@pytest.mark.parametrize("way", WAYS)
def test_it_is_filled_and_nothing_else_is_left(way):
    cluster = begin(way).run()
    assert cluster.content == COMPLETE
    assert cluster.annotations["storage.pod.phase"] == "Succeeded"
    assert cluster.names(CLAIMS) == {"a"}
    assert not cluster.names(PODS)
    assert len(cluster.all(VOLUMES)) == 1
    assert not cluster.names("services") | cluster.names("secrets")
    assert not cluster.reclaimed


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    script=st.lists(ENDS, max_size=4),
    losses=st.lists(st.integers(-1, 4), max_size=40),
    choices=st.lists(st.integers(0, 5), max_size=60),
    lags=st.lists(LAGS, max_size=40),
)
def test_whatever_is_lost_repeated_or_late_the_end_is_the_same(way, script, losses, choices, lags):
    whole = begin(way, script).run()
    lossy = begin(way, script).run(losses=losses, choices=choices, lags=lags)
    assert outcome(lossy) == outcome(whole)
    assert not lossy.names(PODS)
    assert lossy.names(CLAIMS) == {"a"}
    assert not [content for content, _ in lossy.reclaimed if content == COMPLETE]


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    script=st.lists(ENDS, max_size=3),
    steps=st.integers(0, 25),
    losses=st.lists(st.integers(-1, 4), max_size=25),
    choices=st.lists(st.integers(0, 5), max_size=40),
)
def test_deleting_it_at_any_step_leaves_nothing(way, script, steps, losses, choices):
    cluster = begin(way, script)
    for number in range(steps):
        cluster.step(losses[number] if number < len(losses) and losses[number] >= 0 else None)
        cluster.nature(choices[number] if number < len(choices) else 0)
        cluster.now += 1
    cluster.consumer = False
    if cluster.names(DVS):
        cluster.remove(DVS, "a")
    else:
        cluster.remove(CLAIMS, "a")
    for number in range(200):
        cluster.step(losses[number] if number < len(losses) and losses[number] >= 0 else None)
        cluster.settle_deletions()
        # Every actor gets its turn: the kubelet restarts a failing container without end.
        if not cluster.nature(choices[number] if number < len(choices) else number) and number > len(losses):
            break
        cluster.now += 1
    left = {
        key for key in cluster.objects if key[::2] not in (("volumeimportsources", "s"), ("volumeuploadsources", "u"))
    }
    assert not left


@settings(max_examples=20, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    steps=st.integers(0, 20),
    choices=st.lists(st.integers(0, 5), max_size=20),
)
def test_the_same_world_gives_the_same_plan(way, steps, choices):
    cluster = begin(way)
    for number in range(steps):
        cluster.step()
        cluster.nature(choices[number] if number < len(choices) else 0)
    context = cluster.context()
    assert context is not None
    assert reconcile(context) == reconcile(context)


@settings(max_examples=30, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    script=st.lists(ENDS, max_size=2),
    steps=st.integers(1, 25),
    which=st.integers(0, 5),
    choices=st.lists(st.integers(0, 5), max_size=30),
)
# The pod waits for its scratch claim.
@example(
    way="populated, waiting", script=[failing("ScratchNeeded", retry=Retry.ON_CHANGE)], steps=9, which=2, choices=[]
)
def test_it_heals_when_somebody_deletes_a_pod_or_a_temporary_claim(way, script, steps, which, choices):
    cluster = begin(way, script)
    for number in range(steps):
        cluster.step()
        cluster.nature(choices[number] if number < len(choices) else 0)
    victims = [("pods", name) for name in sorted(cluster.names(PODS))]
    victims += [(CLAIMS, name) for name in sorted(cluster.names(CLAIMS)) if name != "a"]
    if victims:
        cluster.remove(*victims[which % len(victims)])
    cluster.run()
    assert cluster.annotations["storage.pod.phase"] in ("Succeeded", "Failed")
    assert (cluster.content == COMPLETE) == (cluster.annotations["storage.pod.phase"] == "Succeeded")
    assert cluster.names(CLAIMS) == {"a"}
    assert not cluster.names(PODS)


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from([way for way, begin in WAYS.items() if begin().names(DVS)]),
    script=st.lists(st.sampled_from([failing(), End()]), max_size=2),
    steps=st.integers(1, 25),
    choices=st.lists(st.integers(0, 5), max_size=30),
)
def test_it_heals_when_a_user_removes_all_annotations_of_its_claims(way, script, steps, choices):
    cluster = begin(way, script)
    for number in range(steps):
        cluster.step()
        cluster.nature(choices[number] if number < len(choices) else 0)
    for claim in cluster.all(CLAIMS):
        claim["metadata"]["annotations"].clear()
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.content == COMPLETE
    assert cluster.names(CLAIMS) == {"a"}
    assert not cluster.names(PODS) | cluster.names("services") | cluster.names("secrets")
