"""End to end: a small guest is imported, and virtual machines in pods boot from its volume and from clones.

QEMU is this machine's own, started and watched by `cdi boot-check` of this checkout; the pod mounts the directories
that they need. It does not get /dev/kvm: emulation boots this guest in seconds, and what a hypervisor below this
machine makes of KVM differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cdi import controller
from tests.cluster.event_log import Chronicle, following
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import DEVICE, is_phase, pod
from tests.cluster.volumes import data_volume
from tests.integration.fixtures_http import running_nginx

ROOT = Path(__file__).parents[2]
SIZE = "512Mi"
BOOT = 500  # seconds, for an emulated guest on a busy machine
TIMEOUT = 600.0
"""Seconds, for an import or copy on a busy machine."""

pytestmark = pytest.mark.timeout(1800)  # the guest is built if no earlier run has left it


@pytest.fixture(scope="module")
def guest(tmp_path_factory) -> Path:
    image = tmp_path_factory.mktemp("guest") / "guest.qcow2"
    subprocess.run([sys.executable, ROOT / "scripts/guest-image", "--small", image], check=True)
    return image


def seen_in_the_pod() -> list[Path]:
    """Return the directories of QEMU with firmware and libraries, Python with its packages, and the checkout."""
    places = [Path("/usr"), Path("/etc/alternatives"), Path(sys.prefix), Path(sys.base_prefix), ROOT]
    return [
        place for index, place in enumerate(places)
        if not any(other in place.parents or other == place for other in places[:index])
    ]  # fmt: skip


def machine(name: str, image: str, claim: str) -> dict:
    command = f"cd {ROOT}; exec {sys.executable} -m cdi.cli.main boot-check {DEVICE} --json --timeout {BOOT}s"
    document = pod(name, image, command, claims={claim: "Block"})
    spec = document["spec"]
    container = spec["containers"][0]
    # Without a request it gets what all other pods leave, which is too little to boot in time.
    container["resources"] = {"requests": {"cpu": "250m"}}
    container["env"] = [{"name": "HOME", "value": "/tmp"}, {"name": "PATH", "value": "/usr/bin:/usr/sbin:/bin"}]
    places = {str(place): str(place) for place in seen_in_the_pod()}
    for number, (place, shown) in enumerate({**places, "/usr/lib": "/lib", "/usr/lib64": "/lib64"}.items()):
        spec["volumes"].append({"name": f"host{number}", "hostPath": {"path": place, "type": "Directory"}})
        container["volumeMounts"].append({"name": f"host{number}", "mountPath": shown, "readOnly": True})
    return document


@pytest.fixture(scope="module")
def place(cluster, guest, tmp_path_factory) -> Iterator[tuple[Kubectl, Chronicle]]:
    """Import the guest into a volume whose first consumer is a virtual machine."""
    if cluster.layout is None:
        pytest.skip("the pod needs this machine's QEMU")
    with (
        running_nginx(tmp_path_factory.mktemp("nginx"), cluster.host_address) as nginx,
        cluster.namespace("guest") as kubectl,
        following(kubectl) as chronicle,
        controller(cluster, kubectl),
    ):
        (nginx.root / "guest.qcow2").symlink_to(guest)
        source = {"http": {"url": nginx.url("guest.qcow2")}}
        kubectl.create(data_volume("golden", source, "csi-wait", mode="Block", size=SIZE))
        chronicle.wait_phase("golden", "PendingPopulation", patience=TIMEOUT)
        kubectl.create(machine("machine", cluster.image, "golden"))
        chronicle.wait_phase("golden", "Succeeded", patience=TIMEOUT)
        yield kubectl, chronicle


def boots(place: tuple[Kubectl, Chronicle], name: str) -> dict[str, Any]:
    """Return the boot report of a virtual machine, asserting that it has booted."""
    kubectl, chronicle = place
    ended = chronicle.wait("pods", name, "ended", is_phase("Succeeded", "Failed"), BOOT + 100)
    text = kubectl.logs(name)
    assert ended["status"]["phase"] == "Succeeded", text[-4000:]
    # In the pod's log the report follows the lines of progress, which go to standard error.
    report: dict[str, Any] = json.loads(text[f"\n{text}".index("\n{\n") :])
    assert report["booted"], report
    assert "login" in report["evidence"]
    assert report["disk_read"] > 8 << 20
    return report


def test_a_virtual_machine_boots_from_an_imported_image(place) -> None:
    boots(place, "machine")
    assert place[1].phases("golden")[-1] == "Succeeded"


def test_virtual_machines_boot_from_clones_of_it(cluster, place) -> None:
    """One clone made by the storage and one host-assisted."""
    kubectl, chronicle = place
    source = {"pvc": {"namespace": kubectl.namespace, "name": "golden"}}
    ways = {"snapshot": "csi", "copy": "local"}
    kubectl.create(*(data_volume(name, source, each, mode="Block", size=SIZE) for name, each in ways.items()))
    for name in ways:
        chronicle.wait_phase(name, "Succeeded", patience=TIMEOUT)
        claim = chronicle.present("persistentvolumeclaims")[name]
        assert claim["metadata"]["annotations"]["cdi.kubevirt.io/cloneType"] == name
        kubectl.create(machine(f"machine-{name}", cluster.image, name))
    for name in ways:
        boots(place, f"machine-{name}")
