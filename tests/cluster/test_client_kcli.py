"""kcli: images from URLs, and disks of virtual machines that are clones of them."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster import build, virtual_machines
from tests.cluster.cdi import controller
from tests.cluster.test_cluster import registry
from tests.cluster.volumes import digest, disk, qcow2, sha256, wait_phase
from tests.faults.server import FaultServer

CONFIGURATION = """\
default:
  client: cluster
cluster:
  type: kubevirt
  kubeconfig: {kubeconfig}
  namespace: {namespace}
  pool: csi
  access_mode: External
  registry: {registry}
"""


class Kcli:
    """The program in one namespace."""

    def __init__(self, clients, namespace: str, registry: str) -> None:
        self._clients = clients
        directory = clients.home / ".kcli"
        directory.mkdir()
        text = CONFIGURATION.format(kubeconfig=clients.kubectl.kubeconfig, namespace=namespace, registry=registry)
        (directory / "config.yml").write_text(text)

    def download(self, name: str, url: str, storage_class: str) -> None:
        """Download an image of one GiB; this version of kcli accepts the size as text only, thus from a file."""
        file = self._clients.home / f"{name}.yml"
        file.write_text(f'size: "1"\npool: {storage_class}\n')
        self.run("download", "image", name, f"--url={url}", f"--paramfile={file}")

    def run(self, *arguments: str) -> str:
        done = self._clients.run("-m", "kvirt.cli", *arguments)
        assert done.exit == 0, done.out + done.errors
        return done.out


@pytest.fixture(scope="module")
def place(cluster):
    virtual_machines.install(cluster.kubectl)
    with cluster.namespace("kcli") as kubectl, controller(cluster, kubectl):
        yield kubectl


@pytest.fixture(scope="module")
def images(cluster, tmp_path_factory):
    """Serve the image of the pod with which kcli makes a class bind that waits for a consumer."""
    if cluster.layout is None:
        pytest.skip("another cluster's nodes do not pull from a registry without TLS")
    archive = build.find(cluster.layout).images / "base.tar"
    with registry(cluster.host_address, tmp_path_factory.mktemp("registry")) as address:
        cluster.allow_plain_registry(address)
        target = f"docker://{address}/karmab/curl:latest"
        copy = ["skopeo", "copy", "--dest-tls-verify=false", f"oci-archive:{archive}:1", target]
        subprocess.run(copy, check=True, capture_output=True)
        yield address


@pytest.fixture(scope="module")
def kcli(clients, place, images):
    return Kcli(clients, place.namespace, images)


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def url(cluster, content, tmp_path_factory):
    with FaultServer(host=cluster.host_address) as server:
        yield server.put("/golden.qcow2", qcow2(content, tmp_path_factory.mktemp("image")))


def test_an_image_becomes_the_disk_of_a_machine(cluster, place, kcli, url, content):
    kcli.download("golden", url, "csi")
    # It lists the claims whose condition has the reason Completed.
    assert "golden" in kcli.run("list", "image", "--output=name").split()
    kcli.run(
        "create", "vm", "machine", "--image=golden", "--param=disks=[1]", "--param=start=false",
        "--param=cloudinit=false",
    )  # fmt: skip
    (name,) = virtual_machines.create_data_volumes(place, "machine")
    wait_phase(place, name, "Succeeded")
    for claim in ("golden", name):
        assert digest(cluster, place, claim, "Filesystem", len(content)) == sha256(content)
    kcli.run("delete", "vm", "--yes", "machine")
    place.wait_gone("persistentvolumeclaim", name)
    kcli.run("delete", "image", "--yes", "golden.qcow2")
    assert "golden" not in kcli.run("list", "image", "--output=name").split()
    place.wait_gone("persistentvolumeclaim", "golden")


def test_an_image_is_downloaded_into_a_class_that_waits_for_a_consumer(cluster, place, kcli, url, content):
    """The consumer is a pod of kcli's own, which ends before the import begins."""
    kcli.download("waits", url, "csi-wait")
    assert "waits" in kcli.run("list", "image", "--output=name").split()
    assert digest(cluster, place, "waits", "Filesystem", len(content)) == sha256(content)
