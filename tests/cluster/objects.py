"""Manifests shared by cluster tests."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

DEVICE = "/dev/volume"
DIRECTORY = "/volume"


def claim(
    name: str, storage_class: str, *, mode: str = "Filesystem", size: str = "64Mi", source: Document | None = None
) -> Document:
    """Build a PersistentVolumeClaim; `source` is its `dataSourceRef`."""
    spec: Document = {
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": mode,
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": size}},
    }
    if source is not None:
        spec["dataSourceRef"] = source
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def snapshot(name: str, source: str) -> Document:
    """Build a VolumeSnapshot of a claim, by the test cluster's driver."""
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "csi", "source": {"persistentVolumeClaimName": source}},
    }


def pod(
    name: str, image: str, script: str, *, claims: dict[str, str] | None = None, labels: dict[str, str] | None = None
) -> Document:
    """Build a pod that runs a shell script once.

    `claims` maps names of claims to their volume modes. The first is at DEVICE or DIRECTORY; the others have their
    claim's name appended to that path.
    """
    mounts, devices, volumes = [], [], []
    for index, (each, mode) in enumerate((claims or {}).items()):
        suffix = f"-{each}" if index else ""
        volumes.append({"name": f"v{index}", "persistentVolumeClaim": {"claimName": each}})
        if mode == "Block":
            devices.append({"name": f"v{index}", "devicePath": DEVICE + suffix})
        else:
            mounts.append({"name": f"v{index}", "mountPath": DIRECTORY + suffix})
    container: Document = {
        "name": "main",
        "image": image,
        "command": ["/bin/sh", "-euc", script],
        "volumeMounts": mounts,
        "volumeDevices": devices,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": volumes,
        },
    }


def phase(document: Document) -> str:
    """Return `status.phase`, "" if it is not set."""
    value: str = document.get("status", {}).get("phase", "")
    return value


def is_phase(*wanted: str) -> Any:
    """Return a predicate for `Kubectl.wait`."""
    return lambda document: phase(document) in wanted
