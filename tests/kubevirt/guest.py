"""Guests that the tests boot, and servers from which they are imported."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import wait_phase
from tests.integration.fixtures_http import Nginx, running_nginx
from tests.integration.fixtures_registry import OciLayout, free_port, running_registry
from tests.kubevirt.console import Console
from tests.kubevirt.machines import TIMEOUT

Document = dict[str, Any]
ROOT = Path(__file__).parents[2]
MIB = 1 << 20
INSTANCE_TYPE, PREFERENCE = "small", "linux"
LABELS = {
    "instancetype.kubevirt.io/default-instancetype": INSTANCE_TYPE,
    "instancetype.kubevirt.io/default-preference": PREFERENCE,
}
"""Labels of the golden DataSource, from which KubeVirt infers what its machines need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The small guest of scripts/guest-image in several forms, and an HTTP server."""

    raw: Path
    qcow2: Path
    url: str
    """Of the qcow2 image."""
    image: str
    """Of the containerDisk; its registry speaks plain HTTP."""
    nginx: Nginx

    @property
    def size(self) -> int:
        return self.raw.stat().st_size

    def digest(self, size: int) -> str:
        """Return the sha256 of the first `size` bytes of the disk."""
        with self.raw.open("rb") as file:
            return hashlib.sha256(file.read(size)).hexdigest()

    def http(self) -> Document:
        return {"http": {"url": self.url}}

    def registry(self) -> Document:
        return {"registry": {"url": f"docker://{self.image}"}}


@pytest.fixture(scope="session")
def guest(kubevirt: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Build and serve the small guest."""
    directory = tmp_path_factory.mktemp("small-guest")
    host = kubevirt.host_address
    with running_nginx(directory, host) as nginx, _registry(kubevirt, directory) as address:
        qcow2, raw = nginx.root / "guest.qcow2", directory / "guest.raw"
        subprocess.run([sys.executable, ROOT / "scripts/guest-image", "--small", qcow2], check=True)
        qcow2.chmod(0o644)
        subprocess.run(["qemu-img", "convert", "-O", "raw", qcow2, raw], check=True)
        layout = OciLayout(directory / "layout")
        layout.image([layout.layer({"disk/": b"", "disk/guest.qcow2": qcow2.read_bytes()})], tag="latest")
        push = [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            f"oci:{layout.path}:latest",
        ]
        image = f"{address}/golden/guest:latest"
        subprocess.run([*push, f"docker://{image}"], check=True, timeout=120)
        yield Guest(raw=raw, qcow2=qcow2, url=nginx.url("guest.qcow2"), image=image, nginx=nginx)


@contextlib.contextmanager
def _registry(cluster: Cluster, directory: Path) -> Iterator[str]:
    """Run a registry without TLS that the node pulls from and DataVolumes import from, and yield its address."""
    address = f"{cluster.host_address}:{free_port()}"
    settings = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": address, "secret": "x"},
    }
    cluster.allow_plain_registry(address)
    with running_registry(directory, "plain", int(address.rpartition(":")[2]), settings):
        cluster.kubectl.merge("cdi", "cdi", {"spec": {"config": {"insecureRegistries": [address]}}})
        try:
            yield address
        finally:
            cluster.kubectl.merge("cdi", "cdi", {"spec": {"config": {"insecureRegistries": None}}})


@pytest.fixture(scope="session")
def golden(kubevirt: Cluster, guest: Guest) -> Iterator[Kubectl]:
    """Yield a namespace with a golden claim and a DataSource, both called ``golden``, that everybody may clone."""
    with kubevirt.namespace("golden") as kubectl:
        kubectl.create(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "DataVolume",
                "metadata": {"name": "golden"},
                "spec": {
                    "source": guest.http(),
                    "storage": {
                        "storageClassName": "csi",
                        "accessModes": ["ReadWriteOnce"],
                        "volumeMode": "Block",
                        "resources": {"requests": {"storage": str(guest.size)}},
                    },
                },
            },
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "DataSource",
                "metadata": {"name": "golden", "labels": LABELS},
                "spec": {"source": {"pvc": {"namespace": kubectl.namespace, "name": "golden"}}},
            },
            *_everybody_may_clone(),
        )
        wait_phase(kubectl, "golden", "Succeeded", patience=TIMEOUT)
        yield kubectl


def source_of(golden: Kubectl) -> Document:
    """Return the DataVolume source that clones the golden claim."""
    return {"pvc": {"namespace": golden.namespace, "name": "golden"}}


def source_ref(golden: Kubectl) -> Document:
    """Return the reference to the golden DataSource."""
    return {"kind": "DataSource", "namespace": golden.namespace, "name": "golden"}


def device(console: Console, serial: str) -> str:
    """Return the path in the guest of the disk with this serial number."""
    found = console.run(f"grep -lx {serial} /sys/block/*/serial; true")
    assert found, f"no disk {serial}: {console.run('head /sys/block/*/serial; cat /proc/partitions')}"
    return f"/dev/{found.split('/')[3]}"


def sha256_in_guest(console: Console, path: str, mebibytes: int) -> str:
    """Return the sha256 of the beginning of a disk, as the guest reads it."""
    command = f"dd if={path} bs=1M count={mebibytes} 2>/dev/null | sha256sum"
    return console.run(command, timeout=300).split()[0]


def _everybody_may_clone() -> tuple[Document, Document]:
    rules = [{"apiGroups": ["cdi.kubevirt.io"], "resources": ["datavolumes/source"], "verbs": ["create"]}]
    group = "rbac.authorization.k8s.io"
    return (
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "clone"}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "clone"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "clone"},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:serviceaccounts"}],
        },
    )
