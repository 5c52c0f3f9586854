"""The guest that the tests boot, and the server from which it is imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.integration.fixtures_http import Nginx, running_nginx
from tests.kubevirt.console import Console

Document = dict[str, Any]
ROOT = Path(__file__).parents[2]
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The small guest of scripts/guest-image as two files, and the server that has it."""

    raw: Path
    qcow2: Path
    url: str
    """Of the qcow2 image."""
    nginx: Nginx

    def digest(self, size: int) -> str:
        """Return the sha256 of the first `size` bytes of the disk."""
        with self.raw.open("rb") as file:
            return hashlib.sha256(file.read(size)).hexdigest()

    def http(self) -> Document:
        return {"http": {"url": self.url}}


@pytest.fixture(scope="session")
def guest(kubevirt: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Build and serve the small guest."""
    directory = tmp_path_factory.mktemp("small-guest")
    with running_nginx(directory, kubevirt.host_address) as nginx:
        qcow2, raw = nginx.root / "guest.qcow2", directory / "guest.raw"
        subprocess.run([sys.executable, ROOT / "scripts/guest-image", "--small", qcow2], check=True)
        qcow2.chmod(0o644)
        subprocess.run(["qemu-img", "convert", "-O", "raw", qcow2, raw], check=True)
        yield Guest(raw=raw, qcow2=qcow2, url=nginx.url("guest.qcow2"), nginx=nginx)


def device(console: Console, serial: str) -> str:
    """Return the path in the guest of the disk with this serial number."""
    found = console.run(f"grep -lx {serial} /sys/block/*/serial; true")
    assert found, f"no disk {serial}: {console.run('head /sys/block/*/serial; cat /proc/partitions')}"
    return f"/dev/{found.split('/')[3]}"


def sha256_in_guest(console: Console, path: str, mebibytes: int) -> str:
    """Return the sha256 of the beginning of a disk, as the guest reads it."""
    command = f"dd if={path} bs=1M count={mebibytes} 2>/dev/null | sha256sum"
    return console.run(command, timeout=300).split()[0]
