"""Manifests of worker pods, and of pods that read their results, under restricted Pod Security."""

from __future__ import annotations

import json
from typing import Any

from cdi.api.job import Job, Limits

Document = dict[str, Any]

DEVICE = "/dev/cdi-block-volume"
DATA = "/data"
DISK = f"{DATA}/disk.img"
JOURNALS = {"Filesystem": f"{DATA}/.cdi/journal", "Block": "/var/run/cdi/state/journal"}
ANNOTATION = "cdi.kubevirt.io/"
USER = 107

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""Labels of a namespace under restricted Pod Security."""


def worker(
    name: str,
    image: str,
    job: Job,
    claim: str,
    mode: str,
    *,
    scratch: str | None = None,
    limits: Limits | None = None,
    journal: str = "",
    memory: str = "600M",
) -> Document:
    """Build a worker pod as the controller does."""
    annotations = {f"{ANNOTATION}job": job.to_json(), f"{ANNOTATION}journal": journal}
    if limits is not None:
        annotations[f"{ANNOTATION}limits"] = limits.to_json()
    told = [
        {"path": each, "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION}{each}']"}}
        for each in ("job", "limits", "journal")
    ]
    document = _pod(name, image, ["cdi-worker"], claim, mode, memory)
    document["metadata"]["annotations"] = annotations
    spec = document["spec"]
    container = spec["containers"][0]
    spec["volumes"] += [
        {"name": "pod", "downwardAPI": {"items": told}},
        {"name": "state", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    container["volumeMounts"] += [
        {"name": "pod", "mountPath": "/var/run/cdi/pod", "readOnly": True},
        {"name": "state", "mountPath": "/var/run/cdi/state"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if scratch is not None:
        spec["volumes"].append({"name": "scratch", "persistentVolumeClaim": {"claimName": scratch}})
        container["volumeMounts"].append({"name": "scratch", "mountPath": "/scratch"})
    container["ports"] = [{"name": "metrics", "containerPort": 8443}]
    return document


def looker(name: str, image: str, script: str, claim: str, mode: str) -> Document:
    """Build a pod that runs a shell script with the volume mounted at the worker's path."""
    return _pod(name, image, ["/bin/sh", "-euc", script], claim, mode, "200M")


def _pod(name: str, image: str, command: list[str], claim: str, mode: str, memory: str) -> Document:
    document = bare(name, image, command, memory=memory)
    container = document["spec"]["containers"][0]
    if mode == "Block":
        container["volumeDevices"] = [{"name": "data", "devicePath": DEVICE}]
    else:
        container["volumeMounts"].append({"name": "data", "mountPath": DATA})
    document["spec"]["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
    return document


def bare(name: str, image: str, command: list[str], *, memory: str) -> Document:
    """Build a pod without a volume that meets the restricted profile."""
    container: Document = {
        "name": "importer",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "100m", "memory": "20M"}, "limits": {"cpu": "750m", "memory": memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [],
        },
    }


def last_words(document: Document) -> Document:
    """Return a pod's termination message."""
    state = document["status"]["containerStatuses"][0]["state"]["terminated"]
    words: Document = json.loads(state["message"])
    return words


def exit_status(document: Document) -> int:
    status: int = document["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    return status
