"""What users do to volumes: restore them, delete and recreate their parts, and take requests back."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cluster.cdi import controller
from tests.cluster.kubectl import KubectlError
from tests.cluster.objects import claim, is_phase
from tests.cluster.test_upload_control import Server, annotations, ready
from tests.cluster.volumes import (
    IMMEDIATE,
    MIB,
    SLOW,
    data_volume,
    digest,
    disk,
    left_behind,
    qcow2,
    sha256,
    wait_phase,
)
from tests.faults.server import FaultServer

Document = dict[str, Any]
PREFIX = "cdi.kubevirt.io/"
PRE_POPULATED, POPULATED_FOR = f"{PREFIX}storage.prePopulated", f"{PREFIX}storage.populatedFor"
RETAIN, TARGET = f"{PREFIX}storage.pod.retainAfterCompletion", f"{PREFIX}storage.upload.target"
CONTENT = disk()


@pytest.fixture(scope="module")
def image(cluster, tmp_path_factory):
    with FaultServer(host=cluster.host_address) as server:
        yield {"http": {"url": server.put("/disk.qcow2", qcow2(CONTENT, tmp_path_factory.mktemp("images")))}}


@pytest.fixture(scope="module")
def place(cluster):
    with cluster.namespace("restore") as kubectl, controller(cluster, kubectl):
        yield kubectl


def claim_of(kubectl, name) -> Document:
    found: Document = kubectl.get("persistentvolumeclaim", name)
    return found


def is_recreated(uid):
    """Return a condition for a PVC that is not the one of this UID."""
    return lambda body: body["metadata"]["uid"] != uid


def annotate(kubectl, name, **named):
    kubectl.merge("persistentvolumeclaim", name, {"metadata": {"annotations": named}})


def wait_clean(kubectl) -> None:
    until = time.monotonic() + SLOW
    while found := left_behind(kubectl):
        assert time.monotonic() < until, found
        time.sleep(0.2)


# --- Deleted after success --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_deleted_pvc_is_created_and_imported_again(cluster, place, image, storage_class):
    name = f"again-{storage_class}"
    place.create(data_volume(name, image, storage_class))
    wait_phase(place, name, "Succeeded")
    uid = claim_of(place, name)["metadata"]["uid"]
    place.delete("persistentvolumeclaim", name)
    place.wait("persistentvolumeclaim", name, "recreated", is_recreated(uid), SLOW)
    place.wait("persistentvolumeclaim", name, "filled", _is_filled, SLOW)
    wait_phase(place, name, "Succeeded")
    assert digest(cluster, place, name, "Filesystem", len(CONTENT)) == sha256(CONTENT)
    place.delete("datavolume", name)


def _is_filled(body: Document) -> bool:
    known = body["metadata"].get("annotations") or {}
    return body["status"].get("phase") == "Bound" and known.get(f"{PREFIX}storage.pod.phase") == "Succeeded"


def test_a_deleted_pvc_of_an_upload_accepts_another_one(place, tmp_path):
    place.create(data_volume("upload-again", {"upload": {}}, "csi"))
    for _ in range(2):
        ready(place, "upload-again")
        wait_phase(place, "upload-again", "UploadReady")
        assert Server(place, "upload-again", tmp_path).post(disk(MIB))[0] == 200
        place.wait("persistentvolumeclaim", "upload-again", "filled", _is_filled, SLOW)
        wait_phase(place, "upload-again", "Succeeded")
        place.delete("persistentvolumeclaim", "upload-again")
    place.delete("datavolume", "upload-again")


# --- Restored ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_a_restored_datavolume_waits_for_its_pvc(place, image, storage_class):
    name = f"restored-{storage_class}"
    place.create(
        data_volume(name, image, storage_class, annotations={PRE_POPULATED: name}), data_volume("other", image, "local")
    )
    wait_phase(place, name, "Pending")
    # The controller has handled the other one, which was created later.
    wait_phase(place, "other", "Succeeded")
    with pytest.raises(KubectlError):
        place.get("persistentvolumeclaim", name)
    restored = claim(name, "local", size="24Mi")
    restored["metadata"]["annotations"] = {POPULATED_FOR: name}
    place.create(restored)
    state = wait_phase(place, name, "Succeeded")
    assert state["status"]["progress"] == "N/A"
    (owner,) = claim_of(place, name)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("DataVolume", name, True)
    assert "storage.import.importPodName" not in annotations(place, name)
    place.delete("datavolume", name, "other")


@pytest.mark.parametrize("source", ["import", "upload"])
def test_a_pvc_that_came_with_its_content_marks_its_datavolume(place, image, source):
    name = f"populated-{source}"
    populated = claim(name, "local", size="24Mi")
    populated["metadata"]["annotations"] = {POPULATED_FOR: name}
    place.create(populated)
    place.create(data_volume(name, image if source == "import" else {"upload": {}}, "csi"))
    state = wait_phase(place, name, "Succeeded")
    assert state["metadata"]["annotations"][PRE_POPULATED] == name
    assert state["status"]["progress"] == "N/A"
    place.delete("datavolume", name)


# --- Kept -------------------------------------------------------------------------------------------------------------


def test_a_retained_import_keeps_its_pod_and_its_prime_pvc(cluster, place, image):
    place.create(data_volume("retained", image, "csi", annotations={RETAIN: "true"}))
    wait_phase(place, "retained", "Succeeded")
    target = place.wait("persistentvolumeclaim", "retained", "filled", _is_filled, SLOW)
    assert digest(cluster, place, "retained", "Filesystem", len(CONTENT)) == sha256(CONTENT)
    assert annotations(place, "retained")["storage.populator.progress"] == "100.0%"
    prime = f"prime-{target['metadata']['uid']}"
    place.wait("persistentvolumeclaim", prime, "lost", is_phase("Lost"), SLOW)
    pod = place.get("pod", f"importer-{prime}")
    assert "deletionTimestamp" not in pod["metadata"]
    place.delete("datavolume", "retained")
    place.wait_gone("persistentvolumeclaim", prime, SLOW)


# --- Deleted while it is needed ---------------------------------------------------------------------------------------


NO_PODS = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "no-pods"},
    "spec": {"hard": {"pods": "0"}},
}


@pytest.mark.parametrize("kind", ["VolumeImportSource", "VolumeUploadSource"])
def test_a_population_continues_without_its_source(cluster, namespace, image, tmp_path, kind):
    """The source is deleted after the prime PVC was created, and before there is a pod."""
    spec: Document = {"contentType": "kubevirt"}
    if kind == "VolumeImportSource":
        spec["source"] = image
    source = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": kind, "metadata": {"name": "s"}, "spec": spec}
    reference = {"apiGroup": "cdi.kubevirt.io", "kind": kind, "name": "s"}
    target = claim("populated", "csi", size="24Mi", source=reference)
    target["metadata"]["annotations"] = {IMMEDIATE: ""}
    with controller(cluster, namespace):
        namespace.create(NO_PODS)
        namespace.wait("resourcequota", "no-pods", "in force", lambda it: "used" in it.get("status", {}), SLOW)
        (uid,) = [
            made["metadata"]["uid"] for made in namespace.create(source, target) if made["kind"] == target["kind"]
        ]
        namespace.wait("persistentvolumeclaim", f"prime-{uid}", "bound", is_phase("Bound"), SLOW)
        namespace.delete(kind.lower(), "s")
        namespace.delete("resourcequota", "no-pods")
        if kind == "VolumeUploadSource":
            ready(namespace, "populated")
            assert Server(namespace, "populated", tmp_path).post(CONTENT)[0] == 200
        namespace.wait("persistentvolumeclaim", "populated", "filled", _is_filled, SLOW)
        wait_clean(namespace)
        assert annotations(namespace, "populated")["storage.populator.progress"] == "100.0%"
        assert digest(cluster, namespace, "populated", "Filesystem", len(CONTENT)) == sha256(CONTENT)


@pytest.mark.parametrize("storage_class", ["csi", "local"])
def test_an_upload_server_ends_when_its_annotation_is_removed(place, tmp_path, storage_class):
    name = f"withdrawn-{storage_class}"
    place.create(data_volume(name, {"upload": {}}, storage_class))
    server = ready(place, name)["storage.uploadPodName"]
    filled = claim_of(place, server.removeprefix("cdi-upload-"))
    assert filled["metadata"]["annotations"][TARGET] == ""
    annotate(place, filled["metadata"]["name"], **{TARGET: None})
    place.wait_gone("pod", server, SLOW)
    place.wait_gone("service", server, SLOW)
    annotate(place, filled["metadata"]["name"], **{TARGET: ""})
    ready(place, name)
    assert Server(place, name, tmp_path).post(disk(MIB))[0] == 200
    wait_phase(place, name, "Succeeded")
    place.delete("datavolume", name)


def test_an_upload_target_made_by_hand_can_be_taken_back(place):
    target = claim("by-hand", "local", size="24Mi")
    target["metadata"]["annotations"] = {TARGET: ""}
    place.create(target)
    ready(place, "by-hand")
    annotate(place, "by-hand", **{TARGET: None})
    place.wait_gone("pod", "cdi-upload-by-hand", SLOW)
    place.wait_gone("service", "cdi-upload-by-hand", SLOW)
    assert annotations(place, "by-hand")["storage.pod.ready"] == "false"
    place.delete("persistentvolumeclaim", "by-hand")
