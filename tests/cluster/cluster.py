"""The cluster under test: our own, or the one that CDI_TEST_KUBECONFIG names."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import build, lifecycle, node
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import BASE_IMAGE, HOST_ADDRESS, ClusterError, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageClass:
    """Properties of a storage class that tests depend on."""

    name: str
    provisioner: str
    waits: bool
    """The class creates volumes only for a first consumer (WaitForFirstConsumer)."""
    csi: bool
    """The provisioner has a CSIDriver object."""
    expands: bool
    snapshot_class: str
    """VolumeSnapshotClass of the same driver, empty if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Kubernetes cluster to test on."""

    kubectl: Kubectl
    image: str
    """Image with /bin/sh and the usual small programs."""
    host_address: str
    """Address at which pods and the API server reach this machine."""
    layout: Layout | None
    """Layout of our own cluster, None for a foreign one."""

    def storage_classes(self) -> tuple[StorageClass, ...]:
        """Return all storage classes, oldest first; CDI_TEST_STORAGE_CLASSES=name,… restricts them.

        Other tests create and delete classes of their own meanwhile.
        """
        drivers = {each["metadata"]["name"] for each in self.kubectl.get_all("csidrivers")}
        snapshots = {each["driver"]: each["metadata"]["name"] for each in self.kubectl.get_all("volumesnapshotclasses")}
        wanted = os.environ.get("CDI_TEST_STORAGE_CLASSES", "")
        return tuple(
            StorageClass(
                name=each["metadata"]["name"],
                provisioner=each["provisioner"],
                waits=each.get("volumeBindingMode") == "WaitForFirstConsumer",
                csi=each["provisioner"] in drivers,
                expands=each.get("allowVolumeExpansion", False),
                snapshot_class=snapshots.get(each["provisioner"], ""),
            )
            for each in sorted(
                self.kubectl.get_all("storageclasses"), key=lambda each: each["metadata"]["creationTimestamp"]
            )
            if not wanted or each["metadata"]["name"] in wanted.split(",")
        )

    @contextlib.contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[Kubectl]:
        """Create a namespace, which is deleted in the background afterwards."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        within = self.kubectl.within(name)
        try:
            # Pods are rejected until the namespace has its default service account.
            within.wait("serviceaccount", "default", "there", lambda _: True)
            yield within
        finally:
            self.kubectl.delete("namespace", name, wait=False)

    def stop(self, program: str) -> None:
        """Stop one of the node's programs (`scripts/cluster status` lists them) until `start`."""
        node.order(self._own(), do="stop", name=program)

    def start(self, program: str) -> None:
        """Start a stopped program."""
        node.order(self._own(), do="restart", name=program)

    def restart(self, program: str) -> None:
        """Restart a program with SIGTERM, as an upgrade does."""
        node.order(self._own(), do="restart", name=program)

    def kill(self, program: str) -> None:
        """Kill a program as a crash would; the node restarts it at once."""
        node.order(self._own(), do="kill", name=program)

    def wait_ready(self, patience: float = 180.0) -> None:
        """Wait until the API server answers.

        Raises:
            ClusterError: It did not answer within `patience` seconds.
        """
        lifecycle.wait_ready(self._own(), patience)

    def load_image(self, archive: Path) -> None:
        """Load the images of an OCI or Docker archive on the node, as a pull would."""
        lifecycle.load_image(self._own(), archive)

    def allow_plain_registry(self, address: str) -> None:
        """Let the node pull over HTTP from the registry at `address` (host:port)."""
        directory = self._own().settings / "registries" / address
        directory.mkdir(parents=True, exist_ok=True)
        # containerd 1.6 rejects the whole file without a host section.
        (directory / "hosts.toml").write_text(f'server = "http://{address}"\n[host."http://{address}"]\n')

    def run(self, *argv: str) -> str:
        """Return the output of a command run as root in the node.

        Raises:
            CalledProcessError: The command failed.
        """
        command = lifecycle.inside(self._own(), *argv)
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    def _own(self) -> Layout:
        if self.layout is None:
            raise ClusterError("only the cluster that the tests bring up can be handled like this")
        return self.layout


def own(layout: Layout) -> Cluster:
    """Return our own running cluster.

    Raises:
        ClusterError: No cluster is up.
    """
    if not lifecycle.running(layout):
        raise ClusterError("no test cluster is up")
    return Cluster(
        kubectl=Kubectl(
            program=build.find(layout).program("kubectl"),
            kubeconfig=layout.kubeconfig,
            environment=lifecycle.client_environment(),
        ),
        image=BASE_IMAGE,
        host_address=HOST_ADDRESS,
        layout=layout,
    )


def named(kubeconfig: Path) -> Cluster:
    """Return the cluster of a kubeconfig.

    CDI_TEST_IMAGE names the image for test pods, CDI_TEST_HOST_ADDRESS the address at which pods reach this machine.

    Raises:
        ClusterError: There is no kubectl, or no such file.
    """
    if not kubeconfig.is_file():
        raise ClusterError(f"CDI_TEST_KUBECONFIG: there is no file {kubeconfig}")
    program = shutil.which("kubectl") or next(map(str, Layout.default().built.glob("programs-*/kubectl")), None)
    if program is None:
        raise ClusterError("missing: kubectl")
    return Cluster(
        kubectl=Kubectl(program=program, kubeconfig=kubeconfig, environment=dict(os.environ)),
        image=os.environ.get("CDI_TEST_IMAGE", "busybox"),
        host_address=os.environ.get("CDI_TEST_HOST_ADDRESS", ""),
        layout=None,
    )
