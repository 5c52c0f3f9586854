"""Volumes are cloned on the cluster, in each way, and hold what their source holds."""

from __future__ import annotations

import pytest

from tests.cluster.cdi import controller
from tests.cluster.servers import serving
from tests.cluster.volumes import (
    MIB,
    data_volume,
    digest,
    disk,
    sha256,
    wait_phase,
)

SIZE = 8 * MIB
DISK = disk(SIZE)
MODES = ("Filesystem", "Block")


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """A namespace with a controller, and golden images ``golden-<mode>`` of class csi in it."""
    directory = tmp_path_factory.mktemp("servers")
    with (
        cluster.namespace("clone") as kubectl,
        controller(cluster, kubectl),
        serving(directory, cluster.host_address) as servers,
    ):
        servers.nginx.put("disk.raw", DISK)
        source = {"http": {"url": servers.nginx.url("disk.raw"), "checksum": f"sha256:{sha256(DISK)}"}}
        for mode in MODES:
            kubectl.create(
                data_volume(
                    f"golden-{mode.lower()}", source, "csi", mode=mode,
                    labels={"instancetype.kubevirt.io/default-instancetype": "u1.small"},
                )
            )  # fmt: skip
        for mode in MODES:
            wait_phase(kubectl, f"golden-{mode.lower()}", "Succeeded")
        yield kubectl


def clone_of(place, name, *, mode="Filesystem", target_mode=None, storage_class="csi", size="24Mi", **options):
    source = {"pvc": {"namespace": place.namespace, "name": f"golden-{mode.lower()}"}}
    return data_volume(name, source, storage_class, mode=target_mode or mode, size=size, **options)


def notes(place, name):
    annotations = place.get("persistentvolumeclaim", name)["metadata"]["annotations"]
    return {key.removeprefix("cdi.kubevirt.io/"): text for key, text in annotations.items()}


@pytest.mark.parametrize("mode", MODES)
def test_a_volume_is_cloned_through_a_snapshot(cluster, place, mode):
    name = f"snap-{mode.lower()}"
    place.create(clone_of(place, name, mode=mode))
    wait_phase(place, name, "Succeeded")
    assert digest(cluster, place, name, mode, SIZE) == sha256(DISK)
    assert notes(place, name)["cloneType"] == "snapshot"
    assert notes(place, name)["clonePhase"] == "Succeeded"
