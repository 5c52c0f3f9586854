"""The installation: KubeVirt's own programs report that they are up, and a machine gets its disk from this project."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import phase
from tests.kubevirt import build, install
from tests.kubevirt.machines import data_volume, machine, template

pytestmark = pytest.mark.core

TIMEOUT = 600.0
"""Seconds, for what takes half a minute on an idle machine."""


def test_every_component_is_deployed_in_the_pinned_version(kubevirt: Cluster) -> None:
    system = kubevirt.kubectl.within(install.NAMESPACE)
    status = system.get("kubevirt", "kubevirt")["status"]
    assert status["phase"] == "Deployed"
    assert status["observedKubeVirtVersion"] == build.version()
    components = {each["metadata"]["labels"]["kubevirt.io"] for each in system.get_all("pods", "kubevirt.io")}
    assert {"virt-operator", "virt-api", "virt-controller", "virt-handler", "virt-exportproxy"} <= components


def test_a_machine_with_a_blank_disk_of_a_template_runs(namespace: Kubectl) -> None:
    disk = template("disk", {"blank": {}}, "csi-wait", size="64Mi")
    namespace.create(machine("machine", [data_volume("disk")], templates=[disk]))
    namespace.wait("vmi", "machine", "running", lambda each: phase(each) == "Running", TIMEOUT)
    assert phase(namespace.get("datavolume", "disk")) == "Succeeded"
    (launcher,) = namespace.get_all("pods", "kubevirt.io=virt-launcher")
    assert phase(launcher) == "Running"
    namespace.wait(
        "vm", "machine", "reported as running",
        lambda each: each.get("status", {}).get("printableStatus") == "Running", TIMEOUT,
    )  # fmt: skip
