"""Installation of KubeVirt, by its own operator, and of this project's chart in the test cluster."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import cdi_image, helm, lifecycle
from tests.cluster import cluster as clusters
from tests.cluster.build import directory_inputs
from tests.cluster.cluster import Cluster
from tests.cluster.direct import Document
from tests.cluster.kubectl import Kubectl, KubectlError
from tests.cluster.layout import ClusterError, Layout
from tests.kubevirt.build import REGISTRY, Say, build, version

NAMESPACE = "kubevirt"
CDI_NAMESPACE = "cdi"

_TIMEOUT = 900.0  # seconds until everything is deployed, on a busy machine
_CHART_TIMEOUT = 300  # seconds
_INTERVAL = 2.0
_REPORT_INTERVAL = 15.0
_FEATURE_GATES = ("HostDisk", "HotplugVolumes", "Snapshot", "VMExport")
"""What the tests use beyond what is generally available in this version."""
_SMALL: Document = {"requests": {"cpu": "5m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}}
"""Resources of pods that mostly wait; the defaults of several of them would fill a node of two cores."""
SETTINGS: Document = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "KubeVirt",
    "metadata": {"name": "kubevirt", "namespace": NAMESPACE},
    "spec": {
        "imagePullPolicy": "IfNotPresent",
        # The default placement requires a node with the role of the control plane.
        "infra": {"replicas": 1, "nodePlacement": {}},
        "configuration": {
            # Nested virtualization is often unusable where tests run, so every guest is emulated everywhere.
            "developerConfiguration": {
                "useEmulation": True,
                "featureGates": list(_FEATURE_GATES),
                "cpuAllocationRatio": 20,  # a virtual processor requests 50m
            },
            # Bridge binding needs a kernel feature that is often missing.
            "network": {"defaultNetworkInterface": "masquerade"},
            "commonInstancetypesDeployment": {"enabled": False},
            "supportContainerResources": [
                {"type": name, "resources": _SMALL}
                for name in ("container-disk", "guest-console-log", "hotplug-disk", "sidecar", "vmexport")
            ],
        },
    },
}


def up(layout: Layout, say: Say) -> bool:
    """Start the test cluster with KubeVirt and this project's chart; return whether the cluster was started for it.

    Raises:
        ClusterError: Something did not come up; the text is one line with what is missing.
    """
    # Builds come before the cluster, because the first ones take long.
    programs, archive = build(layout, say)
    chart = [directory_inputs(path) for path in (helm.CHART, helm.CHART / "files" / "crds")]  # the second is a link
    inputs = _digest(archive.parent.name, cdi_image.archived().name, chart, SETTINGS)
    if layout.kubevirt.exists() and layout.kubevirt.read_text() != inputs:
        say("taking down the cluster, whose KubeVirt or chart is another or was not installed completely")
        lifecycle.down(layout)
    started = lifecycle.up(layout, say)
    if not layout.kubevirt.exists():
        layout.kubevirt.touch()
        cluster = clusters.own(layout)
        # The chart is first because KubeVirt's programs restart when its definitions appear.
        _install_chart(cluster, say)
        cluster.load_image(archive)
        say("KubeVirt's images")
        _install_kubevirt(cluster.kubectl.within(NAMESPACE), programs, say)
        layout.kubevirt.write_text(inputs)
    return started


def _install_kubevirt(kubectl: Kubectl, programs: Path, say: Say) -> None:
    manifests = subprocess.run(
        [programs / "manifests", REGISTRY, version()], check=True, capture_output=True, text=True
    )
    try:
        kubectl.run("apply", "--server-side", "--force-conflicts", "--filename=-", given=manifests.stdout)
        kubectl.run("wait", "--for=condition=Established", "crd/kubevirts.kubevirt.io", "--timeout=150s")
        kubectl.apply(SETTINGS)
    except KubectlError as error:
        raise ClusterError(f"KubeVirt's operator cannot be installed: {error}") from error
    _wait_deployed(kubectl, say)


def is_installed(kubectl: Kubectl) -> bool:
    """Return whether the cluster has a deployed KubeVirt."""
    try:
        listed = json.loads(kubectl.run("get", "kubevirts", "--all-namespaces", "--output=json"))
    except KubectlError:  # there is no such kind
        return False
    return any(each.get("status", {}).get("phase") == "Deployed" for each in listed["items"])


def _install_chart(cluster: Cluster, say: Say) -> None:
    """Install this project's chart, for all namespaces."""
    repository, _, tag = cdi_image.provide(cluster).rpartition(":")
    client = helm.Helm(
        program=helm.build(Layout.default()),
        home=cluster.kubectl.kubeconfig.parent / "helm",
        kubeconfig=cluster.kubectl.kubeconfig,
        namespace=CDI_NAMESPACE,
        environment=cluster.kubectl.environment,
    )
    options = ("--create-namespace", "--take-ownership", "--wait", f"--timeout={_CHART_TIMEOUT}s")
    try:
        client.run(
            "install", "cdi", str(helm.CHART), *options,
            values={"image": {"repository": repository, "tag": tag}}, patience=_CHART_TIMEOUT + 60,
        )  # fmt: skip
    except helm.HelmError as error:
        raise ClusterError(f"the chart cannot be installed: {' '.join(str(error).split())}") from error
    say("the chart is installed")


def _digest(*inputs: object) -> str:
    return hashlib.sha256(repr(inputs).encode()).hexdigest()


def _wait_deployed(kubectl: Kubectl, say: Say) -> None:
    began = reported = time.monotonic()
    last = ""
    while True:
        # The API server may be unavailable for a moment when webhooks are added.
        try:
            kubevirt = kubectl.get("kubevirt", "kubevirt")
            phase = kubevirt.get("status", {}).get("phase", "")
            pending = ", ".join(_pending(kubectl))
        except KubectlError as error:
            phase, pending = "", str(error)
        if phase == "Deployed":
            say("KubeVirt is deployed")
            return
        now = time.monotonic()
        text = f"KubeVirt is {phase or 'not seen by its operator yet'}; waiting for {pending or 'its operator'}"
        if now - began > _TIMEOUT:
            raise ClusterError(f"{text} after {_TIMEOUT:.0f} s (kubectl --namespace={NAMESPACE} get pods,events)")
        if text != last and now - reported > _REPORT_INTERVAL:
            say(text)
            reported, last = now, text
        time.sleep(_INTERVAL)


def _pending(kubectl: Kubectl) -> Iterator[str]:
    """Yield the pods that are not ready, each with its reason."""
    for pod in kubectl.get_all("pods"):
        status = pod["status"]
        conditions = {each["type"]: each for each in status.get("conditions", ())}
        if status.get("phase") == "Succeeded" or conditions.get("Ready", {}).get("status") == "True":
            continue
        containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        waiting = [each["state"]["waiting"]["reason"] for each in containers if "waiting" in each["state"]]
        unscheduled = conditions.get("PodScheduled", {})
        reason = unscheduled.get("message") if unscheduled.get("status") == "False" else next(iter(waiting), "")
        yield f"{pod['metadata']['name']} ({reason or status.get('phase', 'new')})"
