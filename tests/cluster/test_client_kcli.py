"""kcli: images from URLs, and disks of virtual machines that are clones of them."""

from __future__ import annotations

import pytest

from tests.cluster import virtual_machines
from tests.cluster.cdi import controller
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
"""


class Kcli:
    """The program in one namespace."""

    def __init__(self, clients, namespace: str) -> None:
        self._clients = clients
        directory = clients.home / ".kcli"
        directory.mkdir()
        kubeconfig = clients.kubectl.kubeconfig
        (directory / "config.yml").write_text(CONFIGURATION.format(kubeconfig=kubeconfig, namespace=namespace))

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
def kcli(clients, place):
    return Kcli(clients, place.namespace)


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def url(cluster, content, tmp_path_factory):
    with FaultServer(host=cluster.host_address) as server:
        yield server.put("/golden.qcow2", qcow2(content, tmp_path_factory.mktemp("image")))


def test_an_image_becomes_the_disk_of_a_machine(cluster, place, kcli, url, content):
    kcli.run("download", "image", "golden", f"--url={url}", "--param=pool=csi", "--param=size=1")
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
