"""The part of KubeVirt between its clients and their DataVolumes.

KubeVirt itself is not part of the test cluster: its clients store VirtualMachines without a schema here, and
`create_data_volumes` creates the DataVolumes that they describe, as KubeVirt's controller does.
"""

from __future__ import annotations

import json

from tests.cluster.direct import Document
from tests.cluster.kubectl import Kubectl

_CRDS = {"VirtualMachine": "vm", "VirtualMachineInstance": "vmi"}
"""Short names by kind."""


def install(kubectl: Kubectl) -> None:
    """Install the kinds, unless the cluster has them."""
    there = {each["metadata"]["name"] for each in kubectl.get_all("customresourcedefinitions")}
    for kind, short in _CRDS.items():
        if (name := f"{kind.lower()}s.kubevirt.io") not in there:
            kubectl.apply(_definition(name, kind, short))
            kubectl.run("wait", "--for=condition=Established", f"crd/{name}", "--timeout=150s")


def create_data_volumes(kubectl: Kubectl, machine: str) -> list[str]:
    """Create the DataVolumes of a VirtualMachine's templates, and return their names."""
    body = _read(kubectl, machine)
    owner = {
        "apiVersion": body["apiVersion"],
        "kind": body["kind"],
        "name": machine,
        "uid": body["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    names = []
    for template in body["spec"]["dataVolumeTemplates"]:
        metadata = template["metadata"]
        labels = {**metadata.get("labels", {}), "kubevirt.io/created-by": owner["uid"]}
        kubectl.create(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "DataVolume",
                "metadata": {**metadata, "labels": labels, "ownerReferences": [owner]},
                "spec": template["spec"],
            }
        )
        names.append(metadata["name"])
    return names


def report_stopped(kubectl: Kubectl, machine: str) -> None:
    """Write the status of a VirtualMachine that does not run."""
    condition = {"type": "Ready", "status": "False", "reason": "VMINotExists"}
    patch = {"status": {"printableStatus": "Stopped", "conditions": [condition]}}
    kubectl.run(
        "patch", "virtualmachine", machine, "--subresource=status", "--type=merge", f"--patch={json.dumps(patch)}"
    )


def _read(kubectl: Kubectl, machine: str) -> Document:
    body: Document = json.loads(kubectl.run("get", "virtualmachine", machine, "--output=json"))
    return body


def _definition(name: str, kind: str, short: str) -> Document:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": "kubevirt.io",
            "names": {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower(), "shortNames": [short]},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    "subresources": {"status": {}},
                }
            ],
        },
    }
