"""Pods with many volumes at once: one pod reads the results of twenty imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.cluster.event_log import Chronicle
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import is_phase
from tests.cluster.worker_pods import bare

Document = dict[str, Any]


def place_of(claim: str) -> str:
    """Return where these pods have a claim: a directory, or the device itself."""
    return f"/volumes/{claim}"


def disk_of(claim: str, mode: str) -> str:
    return place_of(claim) if mode == "Block" else f"{place_of(claim)}/disk.img"


def pod_of_many(name: str, image: str, script: str, claims: Mapping[str, str]) -> Document:
    """Build a pod that runs a shell script once; `claims` maps names to volume modes."""
    document = bare(name, image, ["/bin/sh", "-euc", script], memory="200M")
    container = document["spec"]["containers"][0]
    container["volumeDevices"] = []
    for number, (claim, mode) in enumerate(claims.items()):
        volume = {"name": f"v{number}", "persistentVolumeClaim": {"claimName": claim}}
        document["spec"]["volumes"].append(volume)
        if mode == "Block":
            container["volumeDevices"].append({"name": volume["name"], "devicePath": place_of(claim)})
        else:
            container["volumeMounts"].append({"name": volume["name"], "mountPath": place_of(claim)})
    document["spec"]["terminationGracePeriodSeconds"] = 0
    return document


def digests(claims: Mapping[str, str], size: int) -> str:
    """Return a script that prints for each claim its name, sha256 of `size` bytes, number of later non-zero bytes."""
    lines = []
    for claim, mode in claims.items():
        disk = disk_of(claim, mode)
        digest = f"head -c {size} {disk} | sha256sum | cut -c1-64"
        rest = f"tail -c +{size + 1} {disk} | tr -d '\\000' | wc -c"
        lines.append(f'echo {claim} "$({digest})" "$({rest})"')
    return "\n".join(lines)


def told(kubectl: Kubectl, chronicle: Chronicle, pod: str, patience: float) -> dict[str, tuple[str, ...]]:
    """Return the pod's output after it has succeeded: each line's first word mapped to the others."""
    ended = chronicle.wait("pods", pod, "ended", is_phase("Succeeded", "Failed"), patience)
    text = kubectl.logs(pod)
    assert ended["status"]["phase"] == "Succeeded", text
    return {words[0]: tuple(words[1:]) for line in text.splitlines() if (words := line.split())}
