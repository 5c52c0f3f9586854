"""DataVolumes and the content of their volumes."""

from __future__ import annotations

import hashlib
import random
import subprocess
import uuid
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import is_phase
from tests.cluster.worker_pods import DEVICE, DISK, looker

Document = dict[str, Any]
MIB = 1 << 20
SLOW = 300.0  # seconds, for what takes a few on an idle machine
IMMEDIATE = "cdi.kubevirt.io/storage.bind.immediate.requested"


def disk(size: int = 8 * MIB, seed: int = 4) -> bytes:
    """Return a disk of data, zeros, and data at the end."""
    data = random.Random(seed).randbytes(size // 2)
    return data[: size // 4] + bytes(size // 2) + data[size // 4 :]


def converted(content: bytes, directory: Path, *image_format: str) -> bytes:
    """Return a raw disk in another format; `image_format` are the arguments that follow ``qemu-img convert -O``."""
    raw, image = directory / f"{uuid.uuid4()}.raw", directory / f"{uuid.uuid4()}.image"
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", raw, "-O", *image_format, image], check=True)
    return image.read_bytes()


def qcow2(content: bytes, directory: Path) -> bytes:
    """Return the same disk as a qcow2 image."""
    return converted(content, directory, "qcow2")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def data_volume(
    name: str, source: Document, storage_class: str | None, *, mode: str = "Filesystem", size: str = "24Mi",
    annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, form: str = "pvc",
) -> Document:  # fmt: skip
    """Build a DataVolume whose claim is described by `form`: ``pvc`` or ``storage``."""
    spec: Document = {
        "volumeMode": mode,
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
    }
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, "annotations": annotations or {}, "labels": labels or {}},
        "spec": {"source": source, form: spec},
    }


def wait_phase(kubectl: Kubectl, name: str, *phases: str, patience: float = SLOW) -> Document:
    """Return the DataVolume once it is in one of these phases, failing early if it becomes Failed."""

    def there(document: Document) -> bool:
        phase = document.get("status", {}).get("phase")
        assert phase != "Failed" or "Failed" in phases, document["status"]
        return phase in phases

    return kubectl.wait("datavolume", name, " or ".join(phases), there, patience)


def conditions(document: Document) -> dict[str, Document]:
    """Return the conditions by type, and as `Detail` reason and message of the status beyond them."""
    status = document.get("status", {})
    found = {one["type"]: one for one in status.get("conditions", [])}
    return {**found, "Detail": {"reason": "", "message": "", **status.get("detail", {})}}


def consume(cluster: Cluster, kubectl: Kubectl, claim: str, mode: str) -> str:
    """Start a pod that mounts the claim without reading it, and return the pod's name."""
    name = f"consumer-{uuid.uuid4().hex[:6]}"
    kubectl.create(looker(name, cluster.image, "true", claim, mode))
    return name


def look(cluster: Cluster, kubectl: Kubectl, claim: str, mode: str, script: str) -> str:
    """Return the output of a shell script in a pod with the volume."""
    name = f"look-{uuid.uuid4().hex[:6]}"
    kubectl.create(looker(name, cluster.image, script, claim, mode))
    document = kubectl.wait("pod", name, "at its end", is_phase("Succeeded", "Failed"), SLOW)
    output = kubectl.logs(name)
    assert document["status"]["phase"] == "Succeeded", output
    kubectl.delete("pod", name)
    return output.strip()


def digest(cluster: Cluster, kubectl: Kubectl, claim: str, mode: str, size: int) -> str:
    """Return the sha256 of the disk's first `size` bytes."""
    path = DEVICE if mode == "Block" else DISK
    return look(cluster, kubectl, claim, mode, f"head -c {size} {path} | sha256sum").split()[0]


def volume_mode(kubectl: Kubectl, claim: str) -> str:
    """Return the claim's volume mode, for claims whose manifest leaves it to the StorageProfile."""
    mode: str = kubectl.get("persistentvolumeclaim", claim)["spec"]["volumeMode"]
    return mode


def left_behind(kubectl: Kubectl) -> list[str]:
    """Return the temporary objects of imports that still exist."""
    found = [f"pod {each['metadata']['name']}" for each in kubectl.get_all("pods", "app=containerized-data-importer")]
    found += [
        f"claim {each['metadata']['name']}"
        for each in kubectl.get_all("persistentvolumeclaims")
        if each["metadata"]["name"].startswith("prime-") or each["metadata"]["name"].endswith("-scratch")
    ]
    return found
