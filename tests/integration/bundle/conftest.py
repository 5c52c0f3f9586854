"""Golden images to bundle: one from a registry, one from a file, on a machine with a CDI_HOME of its own."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Cdi
from tests.integration.cli.conftest import cdi as cdi  # noqa: PLC0414  the fixture
from tests.integration.local_backend import end_embedded

MIB = 1 << 20
GUEST = random.Random(7).randbytes(3 * MIB) + bytes(9 * MIB)


@pytest.fixture(scope="module")
def qcow2(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("guest")
    (directory / "guest.raw").write_bytes(GUEST)
    subprocess.run(
        ["qemu-img", "convert", "-q", "-c", "-O", "qcow2", directory / "guest.raw", directory / "guest.qcow2"],
        check=True,
    )
    return directory / "guest.qcow2"


def keys(directory: Path, name: str = "key") -> tuple[Path, Path]:
    """Make a private and a public key with openssl."""
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


@dataclass
class Golden:
    """A machine with a golden image, offered by a DataSource."""

    cdi: Cdi
    name: str
    digest: str
    url: str


def offer(cdi: Cdi, name: str, volume: str, labels: dict[str, str] | None = None) -> None:
    manifest = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"source": {"pvc": {"name": volume, "namespace": "default"}}},
    }
    cdi("apply", "-f", "-", input=json.dumps(manifest))


@pytest.fixture
def from_registry(cdi, registries, oci_layout, qcow2) -> Golden:
    """An index of two platforms in a registry, of which this machine's was imported."""
    entries = [
        oci_layout.image(
            [oci_layout.layer({"disk/": b"", "disk/guest.qcow2": qcow2.read_bytes()})],
            architecture=architecture,
            env=[f"INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=on.{architecture}"],
        )
        for architecture in ("amd64", "arm64")
    ]
    oci_layout.index(entries, tag="v1")
    name = f"os/{random.SystemRandom().randbytes(6).hex()}"
    digest = registries.push(oci_layout, "v1", f"{name}:v1")
    url = registries.open.url(f"{name}:v1")
    cdi("import", url, "--insecure", "--arch", "amd64", "--name", "fedora-1")
    offer(cdi, "fedora", "fedora-1", {"instancetype.kubevirt.io/default-preference": "on.amd64"})
    return Golden(cdi, "fedora", digest, url)


@pytest.fixture
def from_file(cdi, qcow2) -> Golden:
    """A volume that was uploaded, so that only its disk is left of it."""
    cdi("import", qcow2, "--name", "local-1", "--size", "12Mi")
    offer(cdi, "local", "local-1", {"instancetype.kubevirt.io/default-preference": "fedora", "own": "label"})
    return Golden(cdi, "local", "", str(qcow2))


@pytest.fixture
def elsewhere(tmp_path):
    """Another machine: a CDI_HOME of its own, whose commands run without a network."""

    class Offline(Cdi):
        def command(self, *arguments):
            return ["unshare", "--net", *super().command(*arguments)]

    made = Offline(tmp_path / "elsewhere", tmp_path)
    yield made
    end_embedded(made.home)
