"""Fallbacks to host-assisted clones, whose reason is the same before, during and after the clone.

Also the size of a target that names none.
"""

from __future__ import annotations

import json

import pytest

from cdi.reconcile.clone.strategy import FALLBACK_SENTENCES
from tests.cluster.cdi import controller
from tests.cluster.event_log import following
from tests.cluster.objects import claim as claim_of
from tests.cluster.objects import is_phase, snapshot
from tests.cluster.reader import digests, pod_of_many, told
from tests.cluster.servers import serving
from tests.cluster.test_cli import Cdi
from tests.cluster.test_clone import BLOCK, DISK, FILES, SIZE, TIMEOUT, storage_class
from tests.cluster.volumes import MIB, data_volume, sha256, wait_phase
from tests.cluster.worker_pods import looker

UNABLE, SILENT = "fallback-unable", "fallback-silent"
SILENT_DRIVER = "silent.cdi.test"
"""A CSI driver name without a driver."""
VOLUMES = ("silent-source", "silent-target")

IN_THE_CLUSTER = (
    storage_class(UNABLE, "local.cdi.test", "snapshot"),
    storage_class(SILENT, SILENT_DRIVER, "snapshot"),
    {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": SILENT_DRIVER}, "spec": {}},
    {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": {"name": SILENT},
        "driver": SILENT_DRIVER,
        "deletionPolicy": "Delete",
    },
)


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """Run a controller in a namespace with a golden image in class csi, in class local, and in a snapshot."""
    directory = tmp_path_factory.mktemp("servers")
    with (
        cluster.namespace("fallbacks") as kubectl,
        controller(cluster, kubectl),
        serving(directory, cluster.host_address) as servers,
    ):
        try:
            kubectl.create(*IN_THE_CLUSTER)
            servers.nginx.put("disk.raw", DISK)
            source = {"http": {"url": servers.nginx.url("disk.raw"), "checksum": f"sha256:{sha256(DISK)}"}}
            for name, kind in (("golden", "csi"), ("local", "local"), (VOLUMES[0], "csi")):
                kubectl.create(data_volume(name, source, kind))
            kubectl.create(data_volume(VOLUMES[1], {"blank": {}}, "csi"))
            for name in ("golden", "local", *VOLUMES):
                wait_phase(kubectl, name, "Succeeded")
            kubectl.create(snapshot("kept", "golden"))
            kubectl.wait(
                "volumesnapshot", "kept", "ready", lambda one: one.get("status", {}).get("readyToUse"), TIMEOUT
            )
            yield kubectl
        finally:
            for body in reversed(IN_THE_CLUSTER):
                kubectl.run("delete", body["kind"], "--ignore-not-found", body["metadata"]["name"])


@pytest.fixture
def cdi(place, tmp_path):
    return Cdi(place, tmp_path)


def notes_of(document):
    return {
        name.removeprefix("cdi.kubevirt.io/"): text
        for name, text in document["metadata"].get("annotations", {}).items()
    }


def explained(cdi, *arguments, given=None):
    return json.loads(cdi("explain", *arguments, "-o", "json", given=given).stdout)


def content(cluster, kubectl, modes):
    """Return what a pod reads in these claims: by name the sha256, and the number of non-zero bytes after the disk."""
    name = f"reader-of-{next(iter(modes))}"
    with following(kubectl) as chronicle:
        kubectl.create(pod_of_many(name, cluster.image, digests(modes, SIZE), modes))
        found = told(kubectl, chronicle, name, TIMEOUT)
    kubectl.delete("pod", name)
    return found


def test_without_a_snapshot_class_a_pod_copies(cluster, place, cdi):
    wanted = data_volume("unable", {"pvc": {"namespace": place.namespace, "name": "local"}}, UNABLE)
    before = explained(cdi, "-f", "-", given=json.dumps(wanted))
    assert before["refusal"] is None
    assert before["waits"] is None
    clone = before["clone"]
    assert clone["source"] == f"PVC {place.namespace}/local"
    assert clone["strategy"] == "copy"
    assert [one["reason"] for one in clone["fallbacks"]] == ["NoPopulator", "NoVolumeSnapshotClass"]
    (cost,) = clone["costs"]
    assert cost.startswith("two pods: ")

    place.create(wanted)
    wait_phase(place, "unable", "Succeeded")
    events = {
        (one["reason"], one["message"]) for one in place.events("DataVolume", "unable") if one["type"] == "Warning"
    }
    assert {
        (one["reason"], f"{FALLBACK_SENTENCES[one['reason']]}: {one['message']}") for one in clone["fallbacks"]
    } <= events
    target = place.get("persistentvolumeclaim", "unable")
    assert notes_of(target)["cloneFallbackReason"] == FALLBACK_SENTENCES["NoPopulator"]
    assert notes_of(target)["cloneType"] == "copy"
    assert json.loads(notes_of(target)["storage.clone.record"])["message"] == clone["why"]
    assert explained(cdi, "dv/unable")["clone"] == clone
    said = cdi("explain", "dv/unable").stdout
    assert f"strategy:    {clone['why']}" in said
    assert f"fallback:    NoPopulator: {clone['fallbacks'][0]['message']}" in said
    assert f"cost:        {cost}" in said
    assert "It has succeeded." in said
    assert content(cluster, place, {"unable": FILES}) == {"unable": (sha256(DISK), "0")}


def test_what_the_storage_does_itself_is_told_with_what_it_costs(place, cdi):
    wanted = data_volume("smart", {"pvc": {"namespace": place.namespace, "name": "golden"}}, "csi", size="48Mi")
    before = explained(cdi, "-f", "-", given=json.dumps(wanted))["clone"]
    assert before["strategy"] == "snapshot"
    assert before["fallbacks"] == []
    assert before["costs"][0].startswith(f"VolumeSnapshot {place.namespace}/tmp-snapshot-")
    assert before["costs"][-1].startswith("the volume is expanded from 24Mi to 48Mi")
    place.create(wanted)
    wait_phase(place, "smart", "Succeeded")
    after = explained(cdi, "dv/smart")["clone"]
    # The first element may differ: another snapshot may exist by then.
    assert (after["why"], after["costs"][1:]) == (before["why"], before["costs"][1:])


def test_a_snapshot_whose_storage_cannot_make_the_target_is_copied(cluster, place):
    source = {"snapshot": {"namespace": place.namespace, "name": "kept"}}
    ways = {"kept-elsewhere": (UNABLE, FILES), "kept-on-device": ("csi", BLOCK)}
    reasons = {"kept-elsewhere": "NoPopulator", "kept-on-device": "IncompatibleVolumeModes"}
    with following(place) as chronicle:
        for name, (kind, mode) in ways.items():
            place.create(data_volume(name, source, kind, mode=mode))
        for name in ways:
            chronicle.wait_phase(name, "Succeeded", patience=TIMEOUT)
        for name, reason in reasons.items():
            notes = notes_of(place.get("persistentvolumeclaim", name))
            assert (notes["cloneType"], notes["cloneFallbackReason"]) == ("copy", FALLBACK_SENTENCES[reason])
            assert reason in {one["reason"] for one in place.events("DataVolume", name)}
        # One restored volume serves both clones and is deleted after the last one.
        uid = place.get("volumesnapshot", "kept")["metadata"]["uid"]
        restored = {name for name in chronicle.names("persistentvolumeclaims") if name.startswith("tmp-pvc-")}
        assert restored == {f"tmp-pvc-{uid}"}
        chronicle.until(
            "it is gone", lambda: f"tmp-pvc-{uid}" not in chronicle.present("persistentvolumeclaims"), TIMEOUT
        )
    modes = {name: mode for name, (_, mode) in ways.items()}
    assert content(cluster, place, modes) == dict.fromkeys(ways, (sha256(DISK), "0"))
    assert place.get("volumesnapshot", "kept")["metadata"]["uid"] == uid


def static_volumes(kubectl):
    """Yield second PersistentVolumes for the volumes of two claims, in a class without a driver."""
    for name in VOLUMES:
        volume = kubectl.get("persistentvolume", kubectl.get("persistentvolumeclaim", name)["spec"]["volumeName"])
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{kubectl.namespace}-{name}"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": volume["spec"]["capacity"],
                "csi": {part: volume["spec"]["csi"][part] for part in ("driver", "volumeHandle", "fsType")
                        if part in volume["spec"]["csi"]},
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": SILENT,
                "volumeMode": FILES,
            },
        }  # fmt: skip


def test_a_strategy_that_hangs_is_given_up_and_the_volume_is_copied(cluster, place, cdi):
    """There is no snapshotter for this driver."""
    volumes = list(static_volumes(place))
    source = claim_of("silent", SILENT, size="24Mi")
    source["spec"]["volumeName"] = volumes[0]["metadata"]["name"]
    wanted = data_volume(
        "given-up", {"pvc": {"namespace": place.namespace, "name": "silent"}}, SILENT,
        annotations={"cdi.kubevirt.io/policy.cloneTimeout": "900"},
    )  # fmt: skip
    try:
        place.create(volumes[0], source)
        place.wait("persistentvolumeclaim", "silent", "bound", is_phase("Bound"), TIMEOUT)
        with following(place) as chronicle:
            place.create(wanted)
            chronicle.wait_phase("given-up", "SnapshotForSmartCloneInProgress", patience=TIMEOUT)
            meanwhile = explained(cdi, "dv/given-up")
            # There is no provisioner for this driver. The claimRef names the prime PVC because otherwise the target
            # itself would be bound to this volume.
            uid = place.get("persistentvolumeclaim", "given-up")["metadata"]["uid"]
            volumes[1]["spec"]["claimRef"] = {"namespace": place.namespace, "name": f"prime-{uid}"}
            place.create(volumes[1])
            assert (meanwhile["clone"]["strategy"], meanwhile["clone"]["fallbacks"]) == ("snapshot", [])
            assert meanwhile["waits"] is None
            shorter = {"metadata": {"annotations": {"cdi.kubevirt.io/policy.cloneTimeout": "5"}}}
            place.merge("datavolume", "given-up", shorter)
            chronicle.wait_phase("given-up", "Succeeded", patience=TIMEOUT)
            notes = notes_of(place.get("persistentvolumeclaim", "given-up"))
            assert (notes["cloneType"], notes["cloneFallbackReason"]) == (
                "copy",
                FALLBACK_SENTENCES["CloneStrategyFailed"],
            )
            clone = explained(cdi, "dv/given-up")["clone"]
            (fallback,) = clone["fallbacks"]
            assert fallback["message"].startswith("snapshot took longer than 5 s: VolumeSnapshot tmp-snapshot-")
            assert clone["why"] == f"copy instead of snapshot: {fallback['message']}"
            events = {(one["reason"], one["message"]) for one in place.events("DataVolume", "given-up")}
            sentence = FALLBACK_SENTENCES["CloneStrategyFailed"]
            assert ("CloneStrategyFailed", f"{sentence}: {fallback['message']}") in events
            (left,) = (one for one in place.get_all("volumesnapshots") if one["metadata"]["name"] != "kept")
            assert "deletionTimestamp" in left["metadata"]
        assert content(cluster, place, {"given-up": FILES}) == {"given-up": (sha256(DISK), "0")}
        assert place.get("persistentvolumeclaim", "silent")["status"]["phase"] == "Bound"
    finally:
        for one in place.get_all("volumesnapshotcontents"):
            # The driver would remove the finalizers.
            if one["spec"]["driver"] == SILENT_DRIVER:
                place.merge("volumesnapshotcontent", one["metadata"]["name"], {"metadata": {"finalizers": None}})
        place.run("delete", "datavolume", "--ignore-not-found", "given-up")
        place.run("delete", "persistentvolumeclaim", "--ignore-not-found", "given-up", "silent")
        place.run("delete", "persistentvolume", "--ignore-not-found", *(one["metadata"]["name"] for one in volumes))


def test_a_target_without_a_size_is_made_for_the_disk_in_its_source(cluster, place, cdi):
    """The size noted by an import is used; for a volume filled by hand, a pod detects the size first."""
    script = f"head -c {SIZE} /dev/urandom >/data/disk.img && truncate -s {12 * MIB} /data/disk.img"
    place.create(claim_of("by-hand", "csi", size="32Mi"))
    place.create(looker("filler", cluster.image, script, "by-hand", FILES))
    place.wait("pod", "filler", "ended", is_phase("Succeeded"), TIMEOUT)
    place.delete("pod", "filler")
    sources = {"noted": "golden", "looked": "by-hand"}
    disks = {"noted": int(notes_of(place.get("persistentvolumeclaim", "golden"))["image.diskSize"]), "looked": 12 * MIB}
    wanted = {}
    for name, source in sources.items():
        body = data_volume(
            name, {"pvc": {"namespace": place.namespace, "name": source}}, "csi", mode=BLOCK, form="storage"
        )
        del body["spec"]["storage"]["resources"]
        wanted[name] = body
    note = "a pod first detects the virtual size of the source's disk"
    for name, body in wanted.items():
        said = explained(cdi, "-f", "-", given=json.dumps(body))["notes"]
        assert any(one.startswith(note) for one in said) is (name == "looked")
    with following(place) as chronicle:
        place.create(*wanted.values())
        for name in wanted:
            chronicle.wait_phase(name, "Succeeded", patience=TIMEOUT)
        looks = [name for name in chronicle.names("pods") if name.startswith("size-detection-")]
        assert looks == [f"size-detection-{place.get('datavolume', 'looked')['metadata']['uid']}"]
        chronicle.until("the pod is gone", lambda: looks[0] not in chronicle.present("pods"), TIMEOUT)
    for name, size in disks.items():
        target = place.get("persistentvolumeclaim", name)
        assert target["spec"]["volumeMode"] == BLOCK
        assert target["spec"]["resources"]["requests"]["storage"] in (str(size), f"{size // MIB}Mi")
    assert content(cluster, place, {"noted": BLOCK}) == {"noted": (sha256(DISK), "0")}
    read = f"head -c {12 * MIB} DISK | sha256sum | cut -c1-64"
    place.create(looker("first", cluster.image, read.replace("DISK", "/data/disk.img"), "by-hand", FILES))
    place.create(looker("second", cluster.image, read.replace("DISK", "/dev/cdi-block-volume"), "looked", BLOCK))
    for name in ("first", "second"):
        place.wait("pod", name, "ended", is_phase("Succeeded"), TIMEOUT)
    assert place.logs("first") == place.logs("second")
