"""Conversion of a volume's disk into a containerDisk: one layer with ``/disk/disk.qcow2``, compressed inside.

The layer itself is not compressed: imports read the qcow2 in place, and a node that runs it as a containerDisk unpacks
no more than it stores. QEMU writes the same bytes for the same disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from cdi import atomic_file
from cdi.api.errors import QemuFailed, QemuMissing, TargetFull
from cdi.api.origin import canonical
from cdi.bundle.layout import JsonDescriptor, LayoutWriter, OnBytes, copy_into, tar_header
from cdi.source.registry.manifest import OCI_MANIFEST

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_QEMU_USER = 107
"""UID and GID of qemu in KubeVirt's pods."""
_LABEL = re.compile(r"(?:([a-z0-9.-]+)\.)?kubevirt\.io/([a-z0-9.-]+)")
MAX_LABELS = 64


def build_disk_image(
    writer: LayoutWriter,
    disk: Path,
    *,
    architecture: str,
    labels: Mapping[str, str],
    on_bytes: OnBytes = lambda _: None,
) -> JsonDescriptor:
    """Write the image of a raw disk, and return the descriptor of its manifest.

    Args:
        writer: The layout.
        disk: A raw disk image.
        architecture: OCI name.
        labels: Labels of the DataSource; those of kubevirt.io become variables that an import turns back into labels.
        on_bytes: Called with the number of bytes of each chunk.

    Raises:
        QemuMissing: qemu-img is not installed.
        QemuFailed: It failed.
        TargetError: The layout cannot be written.
    """
    compressed = writer.work / "disk.qcow2"
    compress(disk, compressed)
    layer_file = writer.work / "layer.tar"
    with atomic_file.mapped("the bundle", writer.root):
        with open(layer_file, "xb") as file:
            file.write(tar_header("disk", None, owner=_QEMU_USER, mode=0o555))
            file.write(tar_header("disk/disk.qcow2", compressed.stat().st_size, owner=_QEMU_USER, mode=0o440))
            size = copy_into(file, compressed)
            file.write(bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        compressed.unlink()
    layer = writer.adopt(layer_file, _LAYER_TYPE, on_bytes)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": sorted(variables(labels))},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": writer.put(canonical(config), _CONFIG_TYPE),
        "layers": [layer],
    }
    platform = {"architecture": architecture, "os": "linux"}
    return writer.put(canonical(manifest), OCI_MANIFEST, platform=platform)


def compress(disk: Path, target: Path) -> None:
    """Write a raw disk as a compressed qcow2; raise `QemuMissing`, `QemuFailed` or `TargetFull`."""
    program = shutil.which("qemu-img")
    if program is None:
        raise QemuMissing("qemu-img is not installed")
    # The format is stated: a disk could contain the header of another format. -W is omitted, as it would make the
    # order of clusters depend on timing.
    words = [program, "convert", "-f", "raw", "-O", "qcow2", "-c", str(disk), str(target)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        message = done.stderr.decode("utf-8", "replace").strip()[-300:]
        if "No space left" in message:
            raise TargetFull("there is no space left for the compressed disk", where=str(target.parent))
        raise QemuFailed(f"qemu-img convert failed: {message or f'status {done.returncode}'}", where=str(disk))


def variables(labels: Mapping[str, str]) -> list[str]:
    """Return the environment from which `cdi.source.registry.labels` reads these labels again."""
    found = []
    for name, value in sorted(labels.items())[:MAX_LABELS]:
        match = _LABEL.fullmatch(name)
        if match is None or match[1] == "cdi" or "." in match[2]:
            continue
        prefix = f"{match[1].replace('.', '_').upper()}_" if match[1] else ""
        found.append(f"{prefix}KUBEVIRT_IO_{match[2].replace('-', '_').upper()}={value}")
    return found
