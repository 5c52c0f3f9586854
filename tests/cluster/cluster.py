"""The cluster as tests see it: the one that is brought up here, or the one that CDI_TEST_KUBECONFIG names."""

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
    """What tests want to know of a storage class."""

    name: str
    provisioner: str
    waits: bool
    """For the first consumer, before a volume is made."""
    csi: bool
    """Its provisioner has a CSIDriver object."""
    expands: bool
    snapshot_class: str
    """Of the same driver; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Kubernetes to test on."""

    kubectl: Kubectl
    image: str
    """An image with /bin/sh and the usual small programs."""
    host_address: str
    """Where pods and the API server reach this machine."""
    layout: Layout | None
    """Of the cluster that is our own, None where it is someone else's."""

    def storage_classes(self) -> tuple[StorageClass, ...]:
        """Every one, those first that are there longest; with CDI_TEST_STORAGE_CLASSES=name,… only those.

        Other tests make some for themselves, and take them away again.
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
        """A namespace of one's own, which goes in the background afterwards."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        within = self.kubectl.within(name)
        try:
            # A pod that is made before its service account is refused.
            within.wait("serviceaccount", "default", "there", lambda _: True)
            yield within
        finally:
            self.kubectl.delete("namespace", name, wait=False)

    def stop(self, program: str) -> None:
        """End one of the node's programs (`scripts/cluster status` names them) until `start`."""
        node.order(self._own(), do="stop", name=program)

    def start(self, program: str) -> None:
        """Start a program that was stopped."""
        node.order(self._own(), do="restart", name=program)

    def restart(self, program: str) -> None:
        """End a program as an upgrade would, and start it again."""
        node.order(self._own(), do="restart", name=program)

    def kill(self, program: str) -> None:
        """End a program as a crash would; it is started again at once."""
        node.order(self._own(), do="kill", name=program)

    def wait_ready(self, patience: float = 180.0) -> None:
        """Until the API server answers.  Raises ClusterError after `patience` seconds."""
        lifecycle.wait_ready(self._own(), patience)

    def load_image(self, archive: Path) -> None:
        """Give the node the images of an OCI or Docker archive, as a pull would."""
        lifecycle.load_image(self._own(), archive)

    def allow_plain_registry(self, address: str) -> None:
        """Let the node pull over HTTP from the registry at `address` (host:port)."""
        directory = self._own().settings / "registries" / address
        directory.mkdir(parents=True, exist_ok=True)
        # Without a host section, containerd 1.6 takes the whole file for faulty.
        (directory / "hosts.toml").write_text(f'server = "http://{address}"\n[host."http://{address}"]\n')

    def run(self, *argv: str) -> str:
        """What a command prints that runs in the node as its root.  Raises CalledProcessError where it fails."""
        command = lifecycle.inside(self._own(), *argv)
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    def _own(self) -> Layout:
        if self.layout is None:
            raise ClusterError("only the cluster that the tests bring up can be handled like this")
        return self.layout


def own(layout: Layout) -> Cluster:
    """The cluster that is up here.  Raises ClusterError where there is none."""
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
    """Someone else's cluster.

    CDI_TEST_IMAGE says which image its pods are to have, CDI_TEST_HOST_ADDRESS where they reach this machine.
    Raises ClusterError where there is no kubectl, or the file is not there.
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
