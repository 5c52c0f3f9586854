"""VirtualMachines of the tests: their manifests, and what is awaited of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.kubectl import Kubectl, KubectlError

Document = dict[str, Any]
MEMORY = "160Mi"
TIMEOUT = 600.0
"""Seconds until a machine runs, with the import of its disk, on a busy machine."""
STOP = 240.0
"""Seconds until a machine is gone."""


def template(
    name: str, source: Document, storage_class: str = "csi", *, mode: str = "Block", size: str = "128Mi"
) -> Document:
    """Build a DataVolume template.

    Args:
        name: Its name, which is the volume's.
        source: Its source.
        storage_class: The storage class.
        mode: The volume mode.
        size: The size of the volume.
    """
    storage: Document = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": mode,
        "resources": {"requests": {"storage": size}},
    }
    return {"metadata": {"name": name}, "spec": {"source": source, "storage": storage}}


def data_volume(name: str) -> Document:
    """Build a volume of a machine whose disk is a DataVolume."""
    return {"name": name, "dataVolume": {"name": name}}


def machine(
    name: str,
    volumes: Sequence[Document],
    *,
    templates: Sequence[Document] = (),
    **more: Any,
) -> Document:
    """Build a VirtualMachine that boots from the first volume; each is a virtio disk whose serial number is its name.

    It has no network interface, and boots faster for it.

    Args:
        name: The machine's name.
        volumes: Its volumes.
        templates: Its DataVolume templates.
        more: Further fields of the spec, such as `runStrategy`.
    """
    devices: Document = {
        "autoattachPodInterface": False,
        "disks": [{"name": each["name"], "serial": each["name"], "disk": {"bus": "virtio"}} for each in volumes],
    }
    domain = {"devices": devices, "memory": {"guest": MEMORY}, "resources": {"requests": {"cpu": "20m"}}}
    inner = {"terminationGracePeriodSeconds": 0, "domain": domain, "volumes": list(volumes)}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {
            "runStrategy": "Always",
            "dataVolumeTemplates": list(templates),
            "template": {"spec": inner},
            **more,
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A VirtualMachine in the cluster."""

    kubectl: Kubectl
    name: str

    def wait_status(self, *wanted: str, patience: float = TIMEOUT) -> Document:
        """Return the VirtualMachine once `kubectl get vm` shows one of these."""
        return self.wait("vm", " or ".join(wanted), lambda body: printable(body) in wanted, patience)

    def wait(
        self, kind: str, what: str, ready: Callable[[Document], bool], patience: float = TIMEOUT, name: str = ""
    ) -> Document:
        """Return an object as soon as `ready` is true for it; by default the one with the machine's name.

        Raises:
            AssertionError: It never was; the message has the state of the whole namespace.
        """
        try:
            return self.kubectl.wait(kind, name or self.name, what, ready, patience)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{describe(self.kubectl)}") from error

    def wait_event(self, reason: str) -> Document:
        """Return the first Event about the VirtualMachine with this reason."""
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until:
            for event in self.kubectl.events("VirtualMachine", self.name):
                if event["reason"] == reason:
                    return event
            time.sleep(0.5)
        raise AssertionError(f"no Event {reason} about {self.name} after {TIMEOUT:.0f} s\n{describe(self.kubectl)}")

    def delete(self) -> None:
        """Delete the machine and wait until it, its process and its pod are gone."""
        self.kubectl.delete("vm", self.name, wait=False)
        for kind in ("vmi", "vm"):
            self.kubectl.wait_gone(kind, self.name, STOP)


def create(kubectl: Kubectl, document: Document) -> Machine:
    """Create the VirtualMachine of a manifest."""
    kubectl.create(document)
    return Machine(kubectl=kubectl, name=document["metadata"]["name"])


def printable(body: Document) -> str:
    """Return what `kubectl get vm` shows as the status."""
    text: str = body.get("status", {}).get("printableStatus", "")
    return text


def describe(kubectl: Kubectl) -> str:
    """Return the conditions of the namespace's machines, DataVolumes, claims and pods, and all its Events."""
    lines = []
    for kind in ("vm", "vmi", "datavolume", "persistentvolumeclaim", "pod"):
        try:
            found = kubectl.get_all(kind)
        except KubectlError as error:
            lines.append(f"{kind}: {error}")
            continue
        for body in found:
            status = body.get("status", {})
            state = status.get("printableStatus") or status.get("phase", "")
            lines.append(f"{kind}/{body['metadata']['name']} {state}")
            lines += [
                f"  {each['type']}={each['status']} {each.get('reason', '')}: {each.get('message', '')}"
                for each in status.get("conditions") or () if each.get("message")
            ]  # fmt: skip
    for event in kubectl.get_all("events"):
        about = event["involvedObject"]
        lines.append(f"{about.get('kind')}/{about.get('name')} {event['reason']}: {json.dumps(event['message'])}")
    return "\n".join(lines)
