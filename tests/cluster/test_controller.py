"""DataVolumes on a real cluster, imported by this checkout's controller and worker image."""

from __future__ import annotations

import time

import pytest

from tests.cluster.cdi import controller
from tests.cluster.volumes import (
    IMMEDIATE,
    MIB,
    SLOW,
    conditions,
    consume,
    data_volume,
    digest,
    disk,
    left_behind,
    look,
    qcow2,
    sha256,
    wait_phase,
)
from tests.cluster.worker_pods import DISK, RESTRICTED, looker
from tests.faults.server import Fault, FaultServer

CLASSES = ("csi", "csi-wait", "local", "local-wait")
each_mode = pytest.mark.parametrize("mode", ["Filesystem", "Block"])


@pytest.fixture(scope="module")
def server(cluster):
    with FaultServer(host=cluster.host_address) as server:
        yield server


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def image(content, tmp_path_factory):
    return qcow2(content, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def place(cluster):
    """Run a controller in a namespace under restricted Pod Security, for all tests of this module."""
    with cluster.namespace() as kubectl:
        kubectl.run("label", "namespace", kubectl.namespace, *(f"{name}={text}" for name, text in RESTRICTED.items()))
        with controller(cluster, kubectl):
            yield kubectl


def wait_clean(kubectl, patience=SLOW) -> None:
    until = time.monotonic() + patience
    while found := left_behind(kubectl):
        assert time.monotonic() < until, found
        time.sleep(0.2)


@pytest.mark.parametrize("storage_class", CLASSES)
@each_mode
def test_an_image_over_http(cluster, place, server, image, content, storage_class, mode) -> None:
    name = f"http-{storage_class}-{mode.lower()}"
    url = server.put(f"/{name}.qcow2", image)
    source = {"http": {"url": url, "checksum": f"sha256:{sha256(image)}"}}
    place.create(data_volume(name, source, storage_class, mode=mode))
    if storage_class.endswith("-wait"):
        waits = "PendingPopulation" if storage_class == "csi-wait" else "WaitForFirstConsumer"
        wait_phase(place, name, waits)
        consume(cluster, place, name, mode)
    done = wait_phase(place, name, "Succeeded")
    assert done["status"]["progress"] == "100.0%"
    assert done["status"]["claimName"] == name
    found = conditions(done)
    assert {kind: found[kind]["status"] for kind in ("Ready", "Bound", "Running")} == {
        "Ready": "True", "Bound": "True", "Running": "False",
    }  # fmt: skip
    assert found["Running"]["reason"] == "Completed"
    claim = place.get("persistentvolumeclaim", name)["metadata"]
    assert claim["annotations"]["cdi.kubevirt.io/storage.pod.phase"] == "Succeeded"
    populated = "true" if storage_class.startswith("csi") else "false"
    assert claim["annotations"]["cdi.kubevirt.io/storage.usePopulator"] == populated
    assert digest(cluster, place, name, mode, len(content)) == sha256(content)
    wait_clean(place)


@each_mode
def test_a_blank_disk_of_the_default_class(cluster, place, mode) -> None:
    name = f"blank-{mode.lower()}"
    place.create(data_volume(name, {"blank": {}}, None, mode=mode, size="16Mi", form="storage"))
    wait_phase(place, name, "Succeeded")
    size = 16 * MIB if mode == "Block" else int(look(cluster, place, name, mode, f"stat -c %s {DISK}"))
    # A file system has no room for a disk of the size for which its volume was requested.
    assert 8 * MIB < size <= 16 * MIB
    assert digest(cluster, place, name, mode, size) == sha256(bytes(size))


def test_a_waiting_class_is_bound_at_once_where_that_is_asked_for(cluster, place, server, image, content) -> None:
    for storage_class in ("csi-wait", "local-wait"):
        name = f"now-{storage_class}"
        url = server.put(f"/{name}.qcow2", image)
        place.create(data_volume(name, {"http": {"url": url}}, storage_class, annotations={IMMEDIATE: ""}))
        wait_phase(place, name, "Succeeded")
        assert digest(cluster, place, name, "Filesystem", len(content)) == sha256(content)


def test_what_is_damaged_fails_at_once_and_says_so(place, server, image) -> None:
    url = server.put("/damaged.qcow2", image[:4096])
    place.create(data_volume("damaged", {"http": {"url": url}}, "csi"))
    failed = wait_phase(place, "damaged", "Failed")
    assert conditions(failed)["Running"]["message"].startswith("Unable to process data: ")
    assert any(event["reason"] == "ImportFailed" for event in place.events("DataVolume", "damaged"))


def test_a_secret_that_is_missing_is_waited_for(cluster, place, server, image, content) -> None:
    url = server.put("/secret.qcow2", image)
    place.create(data_volume("secret", {"http": {"url": url, "secretRef": "login"}}, "csi"))
    waiting = place.wait(
        "datavolume",
        "secret",
        "waiting",
        lambda it: "login" in conditions(it).get("Detail", {}).get("message", ""),
        SLOW,
    )
    assert conditions(waiting)["Ready"]["status"] == "False"
    login = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}}
    place.create({**login, "stringData": {"accessKeyId": "u"}})
    place.wait(
        "datavolume",
        "secret",
        "waiting for a key",
        lambda it: "secretKey" in conditions(it).get("Detail", {}).get("message", ""),
        SLOW,
    )
    place.apply({**login, "stringData": {"secretKey": "p"}})
    wait_phase(place, "secret", "Succeeded")
    assert digest(cluster, place, "secret", "Filesystem", len(content)) == sha256(content)


# --- Deletion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["csi", "local"])
@pytest.mark.parametrize("phase", ["Pending", "ImportScheduled", "ImportInProgress", "Succeeded"])
def test_a_datavolume_that_is_deleted_takes_everything_with_it(place, server, image, storage_class, phase) -> None:
    name = f"gone-{storage_class}-{phase.lower()}"
    slowly = Fault(drip=(65536, 0.5)) if phase == "ImportInProgress" else None
    url = server.put(f"/{name}.qcow2", image, always=slowly)
    place.create(data_volume(name, {"http": {"url": url}}, storage_class))
    order = ["Pending", "ImportScheduled", "ImportInProgress", "Succeeded"]
    wait_phase(place, name, *order[order.index(phase) :])
    if phase == "Succeeded":
        # The test cluster's driver deletes a volume even while it is mounted, and the mount then stays forever.
        wait_clean(place)
    place.delete("datavolume", name, wait=False)
    place.wait_gone("datavolume", name, SLOW)
    place.wait_gone("persistentvolumeclaim", name, SLOW)
    wait_clean(place)
    assert not [
        each for each in place.get_all("volumeimportsources") if name in str(each["metadata"].get("ownerReferences"))
    ]


# --- Without a DataVolume --------------------------------------------------------------------------------------------


def claim(name, storage_class, **more):
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "annotations": more.pop("annotations", {})},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": "24Mi"}},
            **more,
        },
    }


def pod_phase(document):
    return document["metadata"].get("annotations", {}).get("cdi.kubevirt.io/storage.pod.phase")


def test_a_claim_with_annotations_is_filled(cluster, place, server, image, content) -> None:
    url = server.put("/hand.qcow2", image)
    prefix = "cdi.kubevirt.io/storage.import."
    place.create(claim("hand", "local", annotations={f"{prefix}source": "http", f"{prefix}endpoint": url}))
    place.wait("persistentvolumeclaim", "hand", "filled", lambda it: pod_phase(it) == "Succeeded", SLOW)
    assert digest(cluster, place, "hand", "Filesystem", len(content)) == sha256(content)
    wait_clean(place)


def test_a_claim_that_names_an_import_source_is_filled(cluster, place, server, image, content) -> None:
    url = server.put("/source.qcow2", image)
    place.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeImportSource",
            "metadata": {"name": "fedora"},
            "spec": {"source": {"http": {"url": url}}},
        }
    )
    ref = {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "fedora"}
    place.create(claim("populated", "csi", dataSourceRef=ref))
    place.wait("persistentvolumeclaim", "populated", "bound", lambda it: it["status"].get("phase") == "Bound", SLOW)
    assert digest(cluster, place, "populated", "Filesystem", len(content)) == sha256(content)
    wait_clean(place)


def test_an_archive_is_unpacked(cluster, place, server) -> None:
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("inside/file")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    url = server.put("/archive.tar.gz", packed.getvalue())
    document = data_volume("archive", {"http": {"url": url}}, "csi")
    document["spec"]["contentType"] = "archive"
    place.create(document)
    wait_phase(place, "archive", "Succeeded")
    assert look(cluster, place, "archive", "Filesystem", "cat /data/inside/file") == "hello"


# --- Existing and static volumes -------------------------------------------------------------------------------------


def test_a_volume_is_not_written_into_while_a_pod_has_it(cluster, place, server, image, content) -> None:
    url = server.put("/used.qcow2", image)
    place.create(data_volume("used", {"http": {"url": url}}, "local-wait"))
    wait_phase(place, "used", "WaitForFirstConsumer")
    place.create(looker("user", cluster.image, "exec sleep 3600", "used", "Filesystem"))

    def says_so(document) -> bool:
        ready = conditions(document)["Detail"]
        return ready.get("reason") == "ImportTargetInUse" and "Pod user" in ready["message"]

    place.wait("datavolume", "used", "held back", says_so, SLOW)
    assert any(event["reason"] == "ImportTargetInUse" for event in place.events("DataVolume", "used"))
    assert not server.asked("/used.qcow2")
    place.run("delete", "pod", "user", "--grace-period=1")
    wait_phase(place, "used", "Succeeded")
    assert digest(cluster, place, "used", "Filesystem", len(content)) == sha256(content)


@pytest.mark.parametrize("storage_class", ["csi", "csi-wait"])
def test_a_volume_that_was_kept_for_it_is_taken_as_it_is(cluster, place, server, image, content, storage_class) -> None:
    url = server.put(f"/kept-{storage_class}.qcow2", image)
    first, second = f"kept-{storage_class}", f"restored-{storage_class}"
    place.create(data_volume(first, {"http": {"url": url}}, storage_class, annotations={IMMEDIATE: ""}))
    wait_phase(place, first, "Succeeded")
    volume = place.get("persistentvolumeclaim", first)["spec"]["volumeName"]
    place.merge("persistentvolume", volume, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    place.delete("datavolume", first)
    place.wait("persistentvolume", volume, "released", lambda it: it["status"]["phase"] == "Released", SLOW)
    reference = {"namespace": place.namespace, "name": second, "uid": None, "resourceVersion": None}
    place.merge("persistentvolume", volume, {"spec": {"claimRef": reference}})
    place.wait("persistentvolume", volume, "available", lambda it: it["status"]["phase"] == "Available", SLOW)
    # Only now, because the PV controller deletes a released volume with this policy.
    place.merge("persistentvolume", volume, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    nowhere = server.put(f"/nowhere-{storage_class}", b"", always=Fault(status=404))
    annotations = {"cdi.kubevirt.io/storage.checkStaticVolume": ""}
    place.create(data_volume(second, {"http": {"url": nowhere}}, storage_class, annotations=annotations))
    wait_phase(place, second, "Succeeded")
    assert place.get("persistentvolumeclaim", second)["spec"]["volumeName"] == volume
    assert digest(cluster, place, second, "Filesystem", len(content)) == sha256(content)
    wait_clean(place)
