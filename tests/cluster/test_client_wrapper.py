"""The classes of openshift-python-wrapper, by their own waits and properties."""

from __future__ import annotations

import json
import secrets

import pytest

from tests.cluster.cdi import controller
from tests.cluster.client_environment import Clients
from tests.cluster.kubectl import KubectlError
from tests.cluster.layout import SOURCES
from tests.cluster.settings import kept_config
from tests.cluster.volumes import digest, disk, qcow2, sha256
from tests.faults.server import FaultServer

PROGRAM = SOURCES / "clients" / "wrapper.py"


@pytest.fixture(scope="module")
def server(cluster):
    with FaultServer(host=cluster.host_address) as server:
        yield server


@pytest.fixture(scope="module")
def place(cluster):
    with cluster.namespace("wrapper") as kubectl, controller(cluster, kubectl):
        yield kubectl


def run(clients: Clients, course: str, *arguments: str):
    """Run a course of the program and return what it printed last."""
    done = clients.run(str(PROGRAM), course, *arguments)
    assert done.exit == 0, done.out + done.errors
    return json.loads(done.out.splitlines()[-1])


def test_an_image_is_imported_referred_to_cloned_and_deleted(cluster, place, clients, server, tmp_path):
    content = disk()
    url = server.put("/golden.qcow2", qcow2(content, tmp_path))
    found = run(clients, "create", place.namespace, url)
    assert found == {"source": "golden", "populated": True, "bound": True, "status": "Succeeded"}
    for name in ("golden", "machine"):
        assert digest(cluster, place, name, "Filesystem", len(content)) == sha256(content)
    assert run(clients, "delete", place.namespace) == dict.fromkeys(("machine", "golden", "reference"), True)
    for kind in ("datavolumes", "persistentvolumeclaims", "datasources"):
        assert not place.get_all(kind)


def test_an_image_that_does_not_exist_is_told_by_the_condition(place, clients, server):
    found = run(clients, "fail", place.namespace, server.url("/absent.qcow2"))
    assert found["status"] in {"ImportScheduled", "ImportInProgress"}
    assert found["message"].startswith("Unable to connect to http data source: ")
    with pytest.raises(KubectlError):
        place.get("datavolume", "absent")


def test_crons_and_sources_are_stored_as_they_were_written(place, clients):
    found = run(clients, "generated", place.namespace)
    assert found["cron"]["managedDataSource"] == "nightly"
    assert found["cron"]["importsToKeep"] == 2
    assert found["sources"]["VolumeImportSource"]["source"] == {"blank": {}}
    assert found["sources"]["VolumeCloneSource"]["source"]["name"] == "golden"
    assert set(found["sources"]) == {"VolumeImportSource", "VolumeUploadSource", "VolumeCloneSource"}


@pytest.mark.alone
def test_the_configuration_and_profiles_show_what_was_set(cluster, namespace, clients):
    kubectl, name = cluster.kubectl, f"wrapper-{secrets.token_hex(4)}"
    storage_class = {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "csi.cdi.test",
    }  # fmt: skip
    installation = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "metadata": {"name": "cdi"}, "spec": {}}
    with kept_config(kubectl):
        try:
            kubectl.create(storage_class, installation)
            with controller(cluster, namespace, everywhere=True):
                found = run(clients, "configure", namespace.namespace, name)
        finally:
            kubectl.delete("cdi", "cdi")
            kubectl.delete("storageclass", name)
            kubectl.delete("storageprofile", name)
    assert found == {
        "changed": True, "url": "uploads.example.org", "modes": ["ReadWriteMany"], "mode": "Block", "strategy": "copy",
    }  # fmt: skip
