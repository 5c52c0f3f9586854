"""VirtualMachines of the tests: their manifests, and what is awaited of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.kubectl import Kubectl, KubectlError

Document = dict[str, Any]
TIMEOUT = 600.0
"""Seconds until a machine runs, with the import of its disk, on a busy machine."""
STOP = 240.0
"""Seconds until a machine is gone."""


def template(name: str, source: Document | None = None, storage_class: str = "csi", **more: Any) -> Document:
    """Build a DataVolume template.

    Args:
        name: Its name, which is the volume's.
        source: Its source, unless `more` has a `sourceRef`.
        storage_class: The storage class.
        more: `mode`, the volume mode; `size`; anything else is a field of the spec.
    """
    storage: Document = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": more.pop("mode", "Block"),
        "resources": {"requests": {"storage": more.pop("size", "128Mi")}},
    }
    spec = {"storage": storage, **more}
    if source is not None:
        spec["source"] = source
    return {"metadata": {"name": name}, "spec": spec}


def volume(name: str, **source: Any) -> Document:
    """Build a volume of a machine, such as ``volume("seed", cloudInitNoCloud={...})``."""
    return {"name": name, **source}


def data_volume(name: str) -> Document:
    return volume(name, dataVolume={"name": name})


def claim(name: str) -> Document:
    return volume(name, persistentVolumeClaim={"claimName": name})


def machine(
    name: str,
    volumes: Sequence[Document],
    *,
    templates: Sequence[Document] = (),
    memory: str = "160Mi",
    interfaces: Sequence[Document] | None = None,
    **more: Any,
) -> Document:
    """Build a VirtualMachine that boots from the first volume; each is a virtio disk whose serial number is its name.

    Args:
        name: The machine's name.
        volumes: Its volumes.
        templates: Its DataVolume templates.
        memory: Memory of the guest.
        interfaces: Network interfaces; by default there is none, which boots faster.
        more: Further fields of the spec, such as `preference`.
    """
    devices: Document = {
        "disks": [{"name": each["name"], "serial": each["name"], "disk": {"bus": "virtio"}} for each in volumes],
    }
    domain: Document = {"devices": devices}
    if "instancetype" not in more:
        domain |= {"memory": {"guest": memory}, "resources": {"requests": {"cpu": "200m"}}}
    inner: Document = {"terminationGracePeriodSeconds": 0, "domain": domain, "volumes": list(volumes)}
    if interfaces is None:
        devices["autoattachPodInterface"] = False
    else:
        devices["interfaces"] = list(interfaces)
        inner["networks"] = [{"name": each["name"], "pod": {}} for each in interfaces]
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

    def run_state(self, running: bool) -> None:
        """Start the machine, or stop it and wait until its process is gone."""
        self.kubectl.merge("vm", self.name, {"spec": {"runStrategy": "Always" if running else "Halted"}})
        if not running:
            self.kubectl.wait_gone("vmi", self.name, STOP)

    def restart(self) -> None:
        """Stop the machine and start it again."""
        self.run_state(running=False)
        self.run_state(running=True)

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
