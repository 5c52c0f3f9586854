"""Upload targets from manifest to bytes: phases, Service, certificates, and authorization of senders."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import time

import pytest

from cdi.controller.upload_certificates import CLIENT_CERTIFICATE, PROXY_CERTIFICATE
from tests.cluster.cdi import controller
from tests.cluster.kubectl import KubectlError
from tests.cluster.volumes import MIB, SLOW, consume, data_volume, digest, disk, left_behind, sha256, wait_phase
from tests.cluster.worker_pods import RESTRICTED

UPLOAD = {"upload": {}}
PREFIX = "cdi.kubevirt.io/"


@pytest.fixture(scope="module")
def place(cluster):
    with cluster.namespace("u-control") as kubectl:
        kubectl.run("label", "namespace", kubectl.namespace, *(f"{name}={text}" for name, text in RESTRICTED.items()))
        with controller(cluster, kubectl):
            yield kubectl


def secret(kubectl, name):
    return {key: base64.b64decode(text) for key, text in kubectl.get("secret", name)["data"].items()}


def annotations(kubectl, claim):
    found = kubectl.get("persistentvolumeclaim", claim)["metadata"].get("annotations") or {}
    return {name.removeprefix(PREFIX): text for name, text in found.items() if name.startswith(PREFIX)}


def ready(kubectl, claim):
    """Wait until the claim accepts an upload, and return its annotations."""
    kubectl.wait(
        "persistentvolumeclaim",
        claim,
        "ready for an upload",
        lambda body: (body["metadata"].get("annotations") or {}).get(f"{PREFIX}storage.pod.ready") == "true",
        SLOW,
    )
    return annotations(kubectl, claim)


class Server:
    """An upload server, reached as the upload proxy does."""

    def __init__(self, kubectl, claim, tmp_path):
        self.pod = kubectl.get("pod", annotations(kubectl, claim)["storage.uploadPodName"])
        self._name = self.pod["metadata"]["name"]
        self._address = self.pod["status"]["podIP"]
        self._host = f"{self._name}.{kubectl.namespace}.svc"
        self._kubectl, self._tmp_path = kubectl, tmp_path
        self._bundle = kubectl.get("configmap", "cdi-uploadserver-signer-bundle")["data"]["ca-bundle.crt"]

    def connection(self, *, certificate=True):
        context = ssl.create_default_context(cadata=self._bundle)
        if certificate:
            pair = secret(self._kubectl, CLIENT_CERTIFICATE)
            path = self._tmp_path / "client.pem"
            path.write_bytes(pair["tls.crt"] + pair["tls.key"])
            context.load_cert_chain(path)
        plain = socket.create_connection((self._address, 8443), 60)
        made = http.client.HTTPSConnection(self._host, 8443, timeout=240)
        made.sock = context.wrap_socket(plain, server_hostname=self._host)
        return made

    def post(self, content, path="/v1beta1/upload", *, certificate=True):
        connection = self.connection(certificate=certificate)
        try:
            connection.request("POST", path, content, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def gone(kubectl, patience=SLOW):
    """Wait until every object created for uploads is deleted."""
    until = time.monotonic() + patience
    while True:
        found = left_behind(kubectl)
        for kind in ("services", "secrets"):
            names = [one["metadata"]["name"] for one in kubectl.get_all(kind)]
            found += [f"{kind} {name}" for name in names if name.startswith("cdi-upload-")]
        if not found:
            return
        assert time.monotonic() < until, found
        time.sleep(0.2)


def steps(kubectl, kind, name):
    """Return the reasons of upload Events, without those about a previous user of the volume."""
    told = [one["reason"] for one in kubectl.events(kind, name)]
    return [reason for reason in told if reason.startswith("Upload") and reason != "UploadTargetInUse"]


@pytest.mark.parametrize("storage_class", ["csi", "csi-wait", "local", "local-wait"])
@pytest.mark.parametrize("mode", ["Filesystem", "Block"])
def test_a_volume_of_any_kind_is_uploaded_to(cluster, place, tmp_path, storage_class, mode):
    name = f"{storage_class}-{mode.lower()}"
    content = disk()
    place.create(data_volume(name, UPLOAD, storage_class, mode=mode))
    if storage_class.endswith("-wait"):
        wait_phase(place, name, "PendingPopulation" if storage_class == "csi-wait" else "WaitForFirstConsumer")
        consumer = consume(cluster, place, name, mode)
        if storage_class == "local-wait":
            # The consumer has the volume itself until it ends.
            place.wait("pod", consumer, "at its end", lambda pod: pod["status"].get("phase") == "Succeeded", SLOW)
    wait_phase(place, name, "UploadReady")
    shown = ready(place, name)
    populated = storage_class.startswith("csi")
    assert shown["storage.usePopulator"] == ("true" if populated else "false")
    assert shown["uploadClientName"] == "client.upload-server.cdi.kubevirt.io"
    filled = shown["storage.populator.pvcPrime"] if populated else name
    assert shown["storage.uploadPodName"] == f"cdi-upload-{filled}"
    server = Server(place, name, tmp_path)
    status, text = server.post(content)
    assert status == 200, text
    wait_phase(place, name, "Succeeded")
    assert annotations(place, name)["storage.pod.phase"] == "Succeeded"
    gone(place)
    assert digest(cluster, place, name, mode, len(content)) == sha256(content)
    told = place.events("DataVolume", name)
    assert sorted(steps(place, "DataVolume", name)) == ["UploadReady", "UploadScheduled", "UploadSucceeded"], told


def test_only_who_shows_the_proxy_s_certificate_may_send(place, tmp_path):
    place.create(data_volume("guarded", UPLOAD, "local"))
    wait_phase(place, "guarded", "UploadReady")
    ready(place, "guarded")
    server = Server(place, "guarded", tmp_path)
    status, text = server.post(disk(MIB), certificate=False)
    assert (status, "certificate" in text) == (401, True), text
    assert annotations(place, "guarded")["storage.pod.ready"] == "true"
    # A server certificate is not a client certificate, even from the same installation.
    own = secret(place, "cdi-upload-guarded")
    context = ssl.create_default_context(cadata=own["ca.crt"].decode())
    with pytest.raises(ssl.SSLError), socket.create_connection((server._address, 8443), 60) as plain:
        context.wrap_socket(plain, server_hostname=server._host)
    assert server.post(disk(MIB))[0] == 200
    wait_phase(place, "guarded", "Succeeded")


def test_an_image_that_does_not_fit_is_refused_and_another_is_taken(cluster, place, tmp_path):
    place.create(data_volume("twice", UPLOAD, "local", size="16Mi"))
    wait_phase(place, "twice", "UploadReady")
    ready(place, "twice")
    server = Server(place, "twice", tmp_path)
    # The response comes before the body is complete, and the connection may break while the client is still sending.
    with contextlib.suppress(OSError):
        status, text = server.post(disk(32 * MIB))
        assert status == 400, text
    told = place.wait(
        "datavolume",
        "twice",
        "told why",
        lambda body: body["status"].get("detail", {}).get("reason") == "TargetTooSmall",
        SLOW,
    )
    assert told["status"]["phase"] == "UploadReady"
    content = disk(2 * MIB)
    assert server.post(content)[0] == 200
    wait_phase(place, "twice", "Succeeded")
    assert digest(cluster, place, "twice", "Filesystem", len(content)) == sha256(content)
    assert "UploadFailed" in steps(place, "DataVolume", "twice")


def test_a_pod_that_is_lost_before_anybody_uploads_is_made_again(cluster, place, tmp_path):
    place.create(data_volume("lost", UPLOAD, "local"))
    wait_phase(place, "lost", "UploadReady")
    ready(place, "lost")
    first = Server(place, "lost", tmp_path).pod["metadata"]["uid"]
    place.delete("pod", "cdi-upload-lost")
    place.wait("pod", "cdi-upload-lost", "another", lambda pod: pod["metadata"]["uid"] != first, SLOW)
    place.wait(
        "pod",
        "cdi-upload-lost",
        "ready",
        lambda pod: (
            pod["metadata"]["uid"] != first
            and any(one.get("ready") for one in pod["status"].get("containerStatuses") or ())
        ),
        SLOW,
    )
    wait_phase(place, "lost", "UploadReady")
    assert Server(place, "lost", tmp_path).post(disk(MIB))[0] == 200
    wait_phase(place, "lost", "Succeeded")


def test_deleting_it_leaves_nothing(place):
    place.create(data_volume("unwanted", UPLOAD, "csi"), data_volume("unwanted-too", UPLOAD, "local"))
    for name in ("unwanted", "unwanted-too"):
        wait_phase(place, name, "UploadReady")
    place.delete("datavolume", "unwanted", "unwanted-too")
    place.wait_gone("persistentvolumeclaim", "unwanted", SLOW)
    place.wait_gone("persistentvolumeclaim", "unwanted-too", SLOW)
    until = time.monotonic() + SLOW
    while found := [
        one["metadata"]["name"]
        for kind in ("services", "secrets", "pods")
        for one in place.get_all(kind)
        if "unwanted" in one["metadata"]["name"] or one["metadata"]["name"].startswith("cdi-upload-prime")
    ]:
        assert time.monotonic() < until, found
        time.sleep(0.2)


# --- Manifests of other programs ------------------------------------------------------------------------------------


def test_the_claim_that_virtctl_makes(place, tmp_path):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "virtctl",
            "labels": {"cdi.kubevirt.io/applyStorageProfile": "true"},
            "annotations": {
                f"{PREFIX}storage.upload.target": "",
                f"{PREFIX}storage.contentType": "kubevirt",
                f"{PREFIX}storage.bind.immediate.requested": "",
            },
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "csi-wait",
            "resources": {"requests": {"storage": "24Mi"}},
        },
    }
    place.create(claim)
    shown = ready(place, "virtctl")
    assert shown["storage.pod.phase"] == "Running"
    assert Server(place, "virtctl", tmp_path).post(disk(MIB))[0] == 200
    place.wait(
        "persistentvolumeclaim",
        "virtctl",
        "uploaded",
        lambda body: body["metadata"]["annotations"].get(f"{PREFIX}storage.pod.phase") == "Succeeded",
        SLOW,
    )
    with pytest.raises(KubectlError):
        place.get("datavolume", "virtctl")


def test_the_datavolume_that_virtctl_and_the_console_make(place, tmp_path):
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "console", "annotations": {f"{PREFIX}storage.bind.immediate.requested": "true"}},
        "spec": {
            "source": {"upload": {}},
            "storage": {"resources": {"requests": {"storage": "24Mi"}}, "storageClassName": "csi-wait"},
        },
    }
    place.create(body)
    wait_phase(place, "console", "UploadReady")
    ready(place, "console")
    assert Server(place, "console", tmp_path).post(disk(MIB))[0] == 200
    wait_phase(place, "console", "Succeeded")


def test_a_claim_that_names_an_upload_source(place, tmp_path):
    place.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeUploadSource",
            "metadata": {"name": "bring"},
            "spec": {"contentType": "kubevirt"},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "named"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "csi",
                "resources": {"requests": {"storage": "24Mi"}},
                "dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeUploadSource", "name": "bring"},
            },
        },
    )
    assert ready(place, "named")["storage.upload.target"] == ""
    assert Server(place, "named", tmp_path).post(disk(MIB))[0] == 200
    place.wait("persistentvolumeclaim", "named", "bound", lambda body: body["status"].get("phase") == "Bound", SLOW)


# --- The proxy's certificates ---------------------------------------------------------------------------------------


def test_the_proxy_finds_its_certificates(place):
    until = time.monotonic() + SLOW
    while True:
        names = {one["metadata"]["name"] for one in place.get_all("secrets")}
        if {CLIENT_CERTIFICATE, PROXY_CERTIFICATE} <= names:
            break
        assert time.monotonic() < until, names
        time.sleep(0.5)
    assert {"tls.crt", "tls.key", "ca.crt"} == set(secret(place, CLIENT_CERTIFICATE))
    assert {"tls.crt", "tls.key"} <= set(secret(place, PROXY_CERTIFICATE))
    assert json.dumps(place.get("configmap", "cdi-uploadproxy-signer-bundle"))
