"""The installation: KubeVirt's own programs report that they are up, and a machine gets its disk from this project."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.direct import Document
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import phase
from tests.kubevirt import build, install

pytestmark = pytest.mark.core

TIMEOUT = 600.0
"""Seconds, for what takes half a minute on an idle machine."""


def machine(name: str, *templates: Document, memory: str = "128Mi") -> Document:
    """Build a running VirtualMachine whose disks are DataVolumes made from these templates."""
    names = [template["metadata"]["name"] for template in templates]
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {
            "runStrategy": "Always",
            "dataVolumeTemplates": list(templates),
            "template": {
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "domain": {
                        "memory": {"guest": memory},
                        "devices": {"disks": [{"name": each, "disk": {"bus": "virtio"}} for each in names]},
                    },
                    "volumes": [{"name": each, "dataVolume": {"name": each}} for each in names],
                }
            },
        },
    }


def test_every_component_is_deployed_in_the_pinned_version(kubevirt: Cluster) -> None:
    system = kubevirt.kubectl.within(install.NAMESPACE)
    status = system.get("kubevirt", "kubevirt")["status"]
    assert status["phase"] == "Deployed"
    assert status["observedKubeVirtVersion"] == build.version()
    components = {each["metadata"]["labels"]["kubevirt.io"] for each in system.get_all("pods", "kubevirt.io")}
    assert {"virt-operator", "virt-api", "virt-controller", "virt-handler", "virt-exportproxy"} <= components


def test_a_machine_with_a_blank_disk_of_a_template_runs(namespace: Kubectl) -> None:
    disk = {
        "metadata": {"name": "disk"},
        "spec": {
            "source": {"blank": {}},
            "storage": {
                "storageClassName": "csi-wait",
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Block",
                "resources": {"requests": {"storage": "64Mi"}},
            },
        },
    }
    namespace.create(machine("machine", disk))
    namespace.wait("vmi", "machine", "running", lambda each: phase(each) == "Running", TIMEOUT)
    assert phase(namespace.get("datavolume", "disk")) == "Succeeded"
    (launcher,) = namespace.get_all("pods", "kubevirt.io=virt-launcher")
    assert phase(launcher) == "Running"
    namespace.wait(
        "vm", "machine", "reported as running",
        lambda each: each.get("status", {}).get("printableStatus") == "Running", TIMEOUT,
    )  # fmt: skip
