"""Properties of clones: with lost, repeated or late steps the end is the same, and the source is unchanged."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import Retry
from cdi.api.job import Progress
from cdi.api.quantity import Quantity
from cdi.reconcile.actions import DeleteObject
from cdi.reconcile.clone.plan_annotation import ANNOTATION, ClonePlanRecord
from cdi.reconcile.clone.strategy import FALLBACK_SENTENCES
from cdi.reconcile.clone.types import CloneAuthorization
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.settings import ResolvedConfig, Retries, WorkerPodConfig
from tests.unit.reconcile.clone.clone_simulation import GOLDEN, MIB, SNAPSHOTS, CloneCluster
from tests.unit.reconcile.cluster_simulation import CLAIMS, DVS, NS, PODS, VOLUMES, dv, pvc
from tests.unit.reconcile.simulation import failing

IMMEDIATE = {"cdi.kubevirt.io/storage.bind.immediate.requested": ""}
LASTING = "cdi.kubevirt.io/storage.extended.clone.token"
TOKEN = {"cdi.kubevirt.io/storage.clone.token": "leave"}
LEAVE = CloneAuthorization(
    kind="PersistentVolumeClaim", namespace="gold", name="fedora", target_namespace=NS, target_name="a"
)


def cloning(storage_class="csi", *, namespace=NS, strategy="snapshot", annotations=None, kept=False, **options):
    """Return a function that makes a clone; `kept` clones a snapshot, and a `size` of None omits the target's size."""

    def make(**more):
        notes = {**(annotations or {}), **(TOKEN if namespace != NS else {})}
        place = {"namespace": namespace, "name": "kept" if kept else "fedora"}
        form = {"form": "pvc", "mode": "Filesystem", **{k: options[k] for k in ("size", "mode") if k in options}}
        sizeless = form.get("size", "") is None
        if sizeless:
            form |= {"form": "storage", "size": "1Gi"}
        body = dv(storage_class, source={"snapshot" if kept else "pvc": place}, annotations=notes, **form)
        if sizeless:
            del body["spec"]["storage"]["resources"]
        leave = replace(LEAVE, kind="VolumeSnapshot", name="kept") if kept else LEAVE
        made = CloneCluster(body, namespace=namespace, strategy=strategy, grants={"leave": leave}, kept=kept, **more)
        if "config" in options:
            made.config = options["config"]
        return made

    return make


WAYS = {
    "snapshot": cloning(),
    "csi-clone": cloning(strategy="csi-clone"),
    "snapshot, waiting": cloning("csi-wait"),
    "snapshot, waiting, at once": cloning("csi-wait", annotations=IMMEDIATE),
    "snapshot, grown": cloning("grows", size="2Gi"),
    "csi-clone, from another namespace": cloning(namespace="gold", strategy="csi-clone"),
    "snapshot, from another namespace": cloning(namespace="gold"),
    "snapshot, from another namespace, grown": cloning("grows", namespace="gold", size="2Gi"),
    "copy": cloning(strategy="copy"),
    "copy, from another namespace": cloning(namespace="gold", strategy="copy"),
    "copy, direct": cloning("local"),
    "copy, to a device": cloning(mode="Block"),
    "copy, for want of growth": cloning("fixed", size="2Gi"),
    "snapshot, without a size": cloning(size=None),
    "copy, without a size, to a device": cloning(size=None, mode="Block"),
    "copy, without a size, to a device, from another namespace": cloning(size=None, mode="Block", namespace="gold"),
    "copy, without a size, of a snapshot, to a device": cloning(size=None, mode="Block", kept=True),
    "snapshot, of a snapshot": cloning(kept=True),
    "copy, of a snapshot": cloning(kept=True, strategy="copy"),
    "copy, of a snapshot, direct": cloning("local", kept=True),
    "copy, of a snapshot, to a device": cloning(mode="Block", kept=True),
    "copy, of a snapshot of another namespace": cloning(namespace="gold", mode="Block", kept=True),
    "copy, of a snapshot, waiting": cloning("csi-wait", kept=True, strategy="copy"),
}
ENDS = st.sampled_from([failing("PeerUnreachable"), failing("PeerUnreachable", done=50)])
LAGS = st.tuples(st.sampled_from([0, 0, 1, 3]), st.sampled_from([0, 0, 2]), st.sampled_from([0, 0, 3]))


def begin(way, script=()):
    cluster = WAYS[way](script=script, retries=Retries(budget=6))
    cluster.consumer = True
    return cluster


def missing(cluster):
    """Return the number of bytes that the target's volume is too small by."""
    claim = cluster.get(CLAIMS, "a")
    volume = cluster.get(VOLUMES, claim["spec"]["volumeName"], "")
    wanted = claim["spec"]["resources"]["requests"]["storage"]
    return max(0, Quantity.parse(wanted).bytes - Quantity.parse(volume["size"]).bytes)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_cloned_and_nothing_else_is_left(way):
    cluster = begin(way)
    before = cluster.source_face()
    cluster.run()
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert cluster.content == GOLDEN
    assert cluster.annotations["cloneType"] == way.split(",")[0]
    own = cluster.get(DVS, "a")["metadata"]["annotations"]
    assert own["cdi.kubevirt.io/cloneType"] == way.split(",")[0]
    assert (LASTING in own) == ("another namespace" in way)
    assert cluster.annotations["clonePhase"] == "Succeeded"
    assert not missing(cluster)
    assert cluster.names(CLAIMS) == {"a", "fedora"}
    assert not cluster.names(PODS)
    assert not cluster.names("secrets")
    assert not cluster.names(SNAPSHOTS) - {"kept"}
    assert len(cluster.all(VOLUMES)) == 2
    temporary = way.startswith("copy") and "of a snapshot" in way
    assert [content for content, _ in cluster.reclaimed if content == GOLDEN] == [GOLDEN] * temporary
    assert cluster.source_face() == before


@settings(max_examples=60, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    script=st.lists(ENDS, max_size=2),
    losses=st.lists(st.integers(-1, 4), max_size=40),
    choices=st.lists(st.integers(0, 5), max_size=60),
    lags=st.lists(LAGS, max_size=40),
)
def test_whatever_is_lost_repeated_or_late_the_end_is_the_same(way, script, losses, choices, lags):
    cluster = begin(way, script)
    before = cluster.source_face()
    cluster.run(losses=losses, choices=choices, lags=lags, steps=800)
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert not missing(cluster)
    assert cluster.content == GOLDEN
    assert cluster.names(CLAIMS) == {"a", "fedora"}
    assert not cluster.names(PODS)
    assert not cluster.names("secrets")
    assert not cluster.names(SNAPSHOTS) - {"kept"}
    assert cluster.source_face() == before


@pytest.mark.parametrize("note", ["", "waiting for the source"])
def test_a_reader_that_was_killed_is_made_anew_without_any_other_news(note):
    """The pod that waits for it keeps reporting the same, so no event of that pod triggers the recreation."""
    cluster = begin("copy")
    reader = None
    while reader is None or reader["status"]["phase"] != "Running":
        cluster.step()
        cluster.nature(0)
        reader = next((one for one in cluster.all(PODS) if one["metadata"]["name"].endswith("-source-pod")), None)
    reader["status"] = {"phase": "Failed"}
    reader["ended"] = cluster.now
    context = cluster.context()
    worker = replace(context.worker, progress=Progress(phase="preparing", done=0, total=None, note=note))
    again = reconcile(replace(context, worker=worker)).requeue_after
    assert again is not None
    cluster.now += again
    removed = {one.uid for one in reconcile(cluster.context()).actions if isinstance(one, DeleteObject)}
    assert reader["metadata"]["uid"] in removed


@settings(max_examples=60, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    steps=st.integers(0, 30),
    choices=st.lists(st.integers(0, 5), max_size=40),
)
def test_deleting_it_at_any_step_leaves_nothing_but_the_source(way, steps, choices):
    cluster = begin(way)
    before = cluster.source_face()
    for number in range(steps):
        cluster.step()
        cluster.settle_deletions()
        cluster.nature(choices[number] if number < len(choices) else 0)
        cluster.now += 1
    cluster.consumer = False
    cluster.remove(DVS, "a")
    for number in range(200):
        cluster.step()
        cluster.settle_deletions()
        if not cluster.nature(choices[number] if number < len(choices) else 0) and number > 20:
            break
        cluster.now += 1
    left = {key for key in cluster.objects if key[2] not in ("fedora", "pv-golden", "kept")}
    assert not left
    assert cluster.source_face() == before


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    steps=st.integers(1, 25),
    which=st.integers(0, 5),
    choices=st.lists(st.integers(0, 5), max_size=30),
)
def test_it_heals_when_somebody_deletes_what_it_made(way, steps, which, choices):
    cluster = begin(way)
    before = cluster.source_face()
    for number in range(steps):
        cluster.step()
        cluster.settle_deletions()
        cluster.nature(choices[number] if number < len(choices) else 0)
    victims = [(PODS, name) for name in sorted(cluster.names(PODS))]
    victims += [(SNAPSHOTS, name) for name in sorted(cluster.names(SNAPSHOTS) - {"kept"})]
    victims += [(CLAIMS, name) for name in sorted(cluster.names(CLAIMS)) if name not in ("a", "fedora")]
    if victims:
        plural, name = victims[which % len(victims)]
        found = next(space for (kind, space, own) in cluster.objects if (kind, own) == (plural, name))
        cluster.remove(plural, name, namespace=found)
    cluster.run(steps=800)
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert cluster.content == GOLDEN
    assert cluster.names(CLAIMS) == {"a", "fedora"}
    assert cluster.source_face() == before


@pytest.mark.parametrize("strategy", ["snapshot", "csi-clone"])
def test_a_strategy_that_hangs_gives_way_to_copying(strategy):
    cluster = cloning(strategy=strategy)(stuck=True)
    cluster.run()
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert cluster.content == GOLDEN
    assert cluster.annotations["cloneType"] == "copy"
    assert cluster.annotations["cloneFallbackReason"] == FALLBACK_SENTENCES["CloneStrategyFailed"]
    assert "CloneStrategyFailed" in [event.reason for event in cluster.events]
    assert cluster.names(CLAIMS) == {"a", "fedora"}
    assert not cluster.names(SNAPSHOTS)


@pytest.mark.parametrize("grant", [None, "name", "target", "kind"])
def test_without_leave_nothing_of_another_namespace_is_touched(grant):
    cluster = cloning(namespace="gold")()
    other = {
        None: None,
        "name": CloneAuthorization(
            kind=LEAVE.kind, namespace="gold", name="other", target_namespace=NS, target_name="a"
        ),
        "target": CloneAuthorization(
            kind=LEAVE.kind, namespace="gold", name="fedora", target_namespace=NS, target_name="b"
        ),
        "kind": CloneAuthorization(
            kind="VolumeSnapshot", namespace="gold", name="fedora", target_namespace=NS, target_name="a"
        ),
    }[grant]
    cluster.grants = {"leave": other} if other is not None else {}
    cluster.run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.detail["reason"] == "CloneUnauthorised"
    assert cluster.names(CLAIMS) == {"fedora"}
    assert not cluster.names(SNAPSHOTS)


@pytest.mark.parametrize(("uid", "ends"), [("dv-uid", "Succeeded"), ("another", "Failed")])
def test_a_token_that_lasts_is_for_one_datavolume(uid, ends):
    """Copying the token from a claim to another DataVolume of that name has no effect."""
    lasting = {"cdi.kubevirt.io/storage.extended.clone.token": "kept"}
    cluster = cloning(namespace="gold", annotations=lasting)()
    cluster.grants = {"kept": replace(LEAVE, target_uid=uid)}
    cluster.run()
    assert cluster.status["phase"] == ends


def test_a_source_in_use_is_waited_for_by_name():
    cluster = cloning()()
    cluster.pods_of_source = ["holder"]
    cluster.run()
    assert cluster.status["phase"] == "CloneScheduled"
    assert cluster.detail["reason"] == "CloneSourceInUse"
    assert "holder" in cluster.detail["message"]
    assert "CloneSourceInUse" in [event.reason for event in cluster.events]
    cluster.pods_of_source = []
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"


def test_labels_come_with_it():
    cluster = cloning()().run()
    labels = cluster.get(CLAIMS, "a")["metadata"]["labels"]
    assert labels["instancetype.kubevirt.io/default-preference"] == "fedora"


@pytest.mark.parametrize("way", ["snapshot", "csi-clone", "snapshot, from another namespace"])
def test_a_volume_is_taken_before_anybody_has_bound_the_claim_that_it_was_made_for(way, monkeypatch):
    cluster, bind = WAYS[way](), CloneCluster._bind
    monkeypatch.setattr(
        cluster, "_bind", lambda claim, volume: claim["metadata"]["name"] == "a" and bind(cluster, claim, volume)
    )
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.content == GOLDEN
    assert cluster.names(CLAIMS) <= {"a", "fedora"}


@pytest.mark.parametrize("way", ["snapshot", "csi-clone", "snapshot, from another namespace"])
def test_what_is_decided_is_in_the_target_from_the_beginning_and_no_reconcile_rests_on_what_comes_later(way):
    cluster = WAYS[way]()
    cluster.step()
    begun = dict(cluster.get(CLAIMS, "a")["metadata"]["annotations"])
    record = ClonePlanRecord.parse(begun.get(ANNOTATION))
    assert record is not None
    assert record.strategy.value == way.partition(",")[0]
    while cluster.get(CLAIMS, "a")["status"]["phase"] != "Bound":
        cluster.step()
        cluster.settle_deletions()
        if cluster.get(CLAIMS, "a")["status"]["phase"] != "Bound":
            cluster.get(CLAIMS, "a")["metadata"]["annotations"] = dict(begun)
        cluster.nature()
        cluster.now += 1
    cluster.run()
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.content == GOLDEN
    assert cluster.annotations["storage.pod.phase"] == "Succeeded"


@pytest.mark.parametrize("way", ["snapshot, waiting", "copy", "copy, for want of growth", "copy, of a snapshot"])
def test_what_has_to_be_told_or_waited_for_is_decided_once_the_target_is_there(way):
    cluster = WAYS[way]()
    cluster.step()
    assert ANNOTATION not in cluster.get(CLAIMS, "a")["metadata"]["annotations"]


def test_a_volume_that_has_to_grow_is_bound_first():
    cluster = WAYS["snapshot, grown"]()
    cluster.run()
    sizes = [body["size"] for body in cluster.all(VOLUMES) if body["spec"]["claimRef"]["name"] == "a"]
    assert sizes == ["2Gi"]


def test_a_snapshot_whose_volume_the_storage_does_not_make_is_copied():
    """The storage never provisions the target from it, but does provision the temporary claim that is read."""
    cluster = cloning(kept=True)(stuck="stand-in")
    cluster.run()
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert cluster.content == GOLDEN
    assert cluster.annotations["cloneType"] == "copy"
    assert cluster.annotations["cloneFallbackReason"] == FALLBACK_SENTENCES["CloneStrategyFailed"]
    assert cluster.names(CLAIMS) == {"a", "fedora"}


def test_a_snapshot_in_a_class_that_waits_is_read_by_its_first_consumer():
    cluster = cloning("local", kept=True)()
    cluster.withdrawn = ("csi", "fixed", "grows")
    cluster.run()
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert cluster.content == GOLDEN
    assert cluster.names(CLAIMS) == {"a", "fedora"}


def test_a_snapshot_that_nothing_can_be_made_of_is_refused_with_a_remedy():
    cluster = cloning("local", kept=True)()
    cluster.withdrawn = ("csi", "fixed", "grows", "csi-wait")
    cluster.run()
    assert cluster.status["phase"] == "Failed"
    assert cluster.detail["reason"] == "SourceNotSupported"
    assert "provisioner csi.example" in cluster.detail["message"]
    assert cluster.names(CLAIMS) == {"a", "fedora"}


# --- sizes --------------------------------------------------------------------------------------------------------

LEAN = ResolvedConfig(
    overhead=Fraction(6, 100), overheads={"local": Fraction(1, 4)}, pods=WorkerPodConfig(image="example/cdi:1")
)


def asked(cluster):
    """Return the requested bytes of the target."""
    return Quantity.parse(cluster.get(CLAIMS, "a")["spec"]["resources"]["requests"]["storage"]).bytes


@pytest.mark.parametrize("namespace", [NS, "gold"])
def test_a_device_is_as_large_as_the_disk_in_its_source(namespace):
    cluster = cloning(size=None, mode="Block", namespace=namespace)(disk=700 * MIB).run()
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert (asked(cluster), cluster.measured) == (700 * MIB, 1)
    assert not cluster.names(PODS)


def test_a_file_system_that_keeps_more_for_itself_has_room_for_the_disk():
    cluster = cloning("local", size=None, config=LEAN)(disk=960 * MIB).run()
    assert (asked(cluster), cluster.measured) == (1200 * MIB, 1)


def test_one_that_keeps_no_more_is_as_large_as_the_source():
    cluster = cloning("local", size=None)().run()
    assert (asked(cluster), cluster.measured) == (1024 * MIB, 0)


@pytest.mark.parametrize(("storage_class", "size"), [("csi", 1024 * MIB * 106 // 100), ("local", 1280 * MIB)])
@pytest.mark.parametrize("kept", [True, False])
def test_a_file_system_without_a_size_has_room_for_the_device_that_it_is_cloned_from(kept, storage_class, size):
    """KubeVirt's CDI adds the overhead to a snapshot's size as well."""
    cluster = cloning(storage_class, size=None, kept=kept, config=LEAN)(mode="Block").run()
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert abs(asked(cluster) - size) <= MIB
    assert cluster.content == GOLDEN


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("least", "size"), [(4096 * MIB, 4096 * MIB), (512 * MIB, 1024 * MIB)])
def test_a_target_without_a_size_is_no_smaller_than_its_class_makes_volumes(monkeypatch, kept, least, size):
    cluster = cloning("grows", size=None, kept=kept)()
    plain = cluster.storage_defaults
    monkeypatch.setattr(
        cluster, "storage_defaults", lambda *given, **more: replace(plain(*given, **more), minimum=least)
    )
    cluster.run()
    assert cluster.status["phase"] == "Succeeded", cluster.status
    assert asked(cluster) == size


@pytest.mark.parametrize(("noted", "looks"), [(966 * MIB, 0), (965 * MIB, 1), ("x", 1)])
def test_nobody_looks_where_the_import_noted_it_and_the_volume_has_not_grown_since(noted, looks):
    cluster = cloning(size=None, mode="Block")(disk=960 * MIB)
    cluster.get(CLAIMS, "fedora")["metadata"]["annotations"]["cdi.kubevirt.io/image.diskSize"] = str(noted)
    cluster.run()
    assert cluster.measured == looks
    assert asked(cluster) == (960 * MIB if looks else noted)


@pytest.mark.parametrize(("volume", "looks"), [(1024 * MIB, 0), (512 * MIB, 1)])
def test_a_recorded_disk_counts_while_its_volume_has_the_recorded_size(volume, looks):
    cluster = cloning(size=None, mode="Block")(disk=960 * MIB)
    cluster.get(CLAIMS, "fedora")["metadata"]["annotations"] |= {
        "cdi.kubevirt.io/image.diskSize": str(700 * MIB),
        "cdi.kubevirt.io/image.volumeSize": str(volume),
    }
    cluster.run()
    assert cluster.measured == looks
    assert asked(cluster) == (960 * MIB if looks else 700 * MIB)


def test_where_nobody_can_tell_the_sources_volume_is_the_bound():
    cluster = cloning(size=None, mode="Block")(disk=failing("SourceNotFound", Retry.ON_CHANGE).failure)
    cluster.run()
    assert asked(cluster) == 1024 * MIB
    assert cluster.measured == 1


def test_who_looks_and_fails_is_followed_by_another():
    lost = failing("WorkerLost").failure
    cluster = cloning(size=None, mode="Block")(unlucky=[lost, lost], disk=700 * MIB).run()
    assert (asked(cluster), cluster.measured) == (700 * MIB, 3)


def test_a_target_below_the_disk_that_is_noted_waits_with_both_sizes():
    cluster = cloning(size="900Mi", mode="Block")()
    cluster.get(CLAIMS, "fedora")["metadata"]["annotations"]["cdi.kubevirt.io/image.diskSize"] = str(966 * MIB)
    cluster.run()
    assert cluster.status["phase"] == "Pending"
    assert cluster.detail["reason"] == "TargetTooSmall"
    assert str(966 * MIB) in cluster.detail["message"]
    assert str(900 * MIB) in cluster.detail["message"]
    assert cluster.names(CLAIMS) == {"fedora"}


# --- status -------------------------------------------------------------------------------------------------------


def test_event_annotation_and_record_tell_everything_that_is_in_the_way_in_the_same_words():
    cluster = cloning("fixed", size="2Gi", mode="Block")().run()
    notes = cluster.get(CLAIMS, "a")["metadata"]["annotations"]
    record = ClonePlanRecord.parse(notes[ANNOTATION])
    reasons = [one.reason for one in record.fallbacks]
    assert reasons == ["IncompatibleVolumeModes", "NoVolumeExpansion"]
    assert record.reason == reasons[0]
    assert notes["cdi.kubevirt.io/cloneFallbackReason"] == "The volume modes of source and target are incompatible"
    told = {one.reason: one.message for one in cluster.events}
    for one in record.fallbacks:
        assert told[one.reason].startswith(f"{FALLBACK_SENTENCES[one.reason]}: ")
        assert told[one.reason].endswith(one.message)
    assert record.message.endswith(record.fallbacks[0].message)


def without_its_source(strategy):
    """Return a clone whose VolumeCloneSource was deleted once its prime PVC existed."""
    source = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "VolumeCloneSource",
        "metadata": {"name": "c", "namespace": NS},
        "spec": {"source": {"kind": "PersistentVolumeClaim", "name": "fedora"}},
    }
    cluster = CloneCluster(claim=pvc("csi", ref="c", kind="VolumeCloneSource"), strategy=strategy, bodies=[source])
    for _ in range(60):
        cluster.step()
        if any(name.startswith("prime-") for name in cluster.names(CLAIMS)):
            break
        cluster.nature()
    cluster.remove("volumeclonesources", "c")
    return cluster


@pytest.mark.parametrize("strategy", ["snapshot", "csi-clone", "copy"])
def test_a_clone_continues_when_its_clone_source_is_deleted(strategy):
    """Once the prime PVC exists, it records the source."""
    cluster = without_its_source(strategy)
    if strategy == "copy":
        # Its pods are not there yet.
        assert not cluster.names(PODS)
    cluster.run()
    assert cluster.content == GOLDEN
    assert cluster.annotations["storage.pod.phase"] == "Succeeded"
    assert cluster.annotations["storage.populator.progress"] == "100.0%"


def test_a_recorded_source_of_another_namespace_is_not_cloned():
    cluster = without_its_source("copy")
    prime = next(body for body in cluster.all(CLAIMS) if body["metadata"]["name"].startswith("prime-"))
    prime["metadata"]["annotations"]["k8s.io/CloneRequest"] = "gold/fedora"
    cluster.run()
    assert not cluster.names(PODS)
    assert (
        "VolumeCloneSource default/c does not exist"
        in cluster.annotations["storage.condition.running.message"]
        + (cluster.annotations["storage.condition.bound.message"])
    )


def test_a_clone_source_that_is_deleted_before_the_prime_pvc_exists_is_waited_for():
    cluster = CloneCluster(claim=pvc("csi", ref="c", kind="VolumeCloneSource")).run()
    assert not any(name.startswith("prime-") for name in cluster.names(CLAIMS))
    assert "VolumeCloneSource default/c does not exist" in cluster.annotations["storage.condition.bound.message"]


@pytest.mark.parametrize("way", ["snapshot", "csi-clone", "copy"])
def test_the_deleted_pvc_of_a_clone_is_cloned_again(way):
    cluster = WAYS[way]().run()
    first = cluster.get(CLAIMS, "a")["metadata"]["uid"]
    cluster.remove(CLAIMS, "a")
    cluster.run()
    assert cluster.get(CLAIMS, "a")["metadata"]["uid"] != first
    assert (cluster.status["phase"], cluster.content) == ("Succeeded", GOLDEN)
