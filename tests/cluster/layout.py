"""Paths, names and addresses of the test cluster."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
"""This directory, in the checkout."""

NODE = "node"
"""Name of the only node."""

# 198.18.0.0/15 is reserved for benchmarks of networks (RFC 2544), so no real network uses it.
HOST_ADDRESS = "198.18.0.1"
"""Address at which the node and the pods reach this machine."""
NODE_ADDRESS = "198.18.0.2"
"""Address at which this machine and the pods reach the node."""
LINK_PREFIX = 30
POD_NETWORK = "198.18.4.0/22"
SERVICE_NETWORK = "198.19.0.0/16"
API_SERVICE_ADDRESS = "198.19.0.1"
API_PORT = 6443

PAUSE_IMAGE = "images.cdi.test/pause:1"
BASE_IMAGE = "images.cdi.test/base:1"
"""Busybox and curl, for pods that read, write, listen and send requests."""


class ClusterError(Exception):
    """The test cluster is unavailable; the text is one line with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Paths of one test cluster, all below `base`."""

    base: Path

    @classmethod
    def default(cls) -> Layout:
        """Return the layout below CDI_CACHE, as scripts/env.sh sets it."""
        cache = os.environ.get("CDI_CACHE")
        if not cache:
            cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cdi")
        return cls(base=Path(cache).resolve() / "cluster")

    @property
    def toolchain(self) -> Path:
        """Go toolchain that scripts/setup installs if the machine has none; `purge` does not remove it."""
        return self.base.parent / "go"

    @property
    def go(self) -> Path:
        """Go's caches of modules and compiled packages."""
        return self.base / "go"

    @property
    def built(self) -> Path:
        """Builds, one directory for each set of inputs."""
        return self.base / "built"

    @property
    def node(self) -> Path:
        """State of the current or last cluster; missing if there is none."""
        return self.base / "node"

    @property
    def kubevirt(self) -> Path:
        """Digest of the KubeVirt and the chart that the cluster has; missing if it has none."""
        return self.node / "kubevirt"

    @property
    def data(self) -> Path:
        """Directory that the node sees as /var/lib, /var/log and /run."""
        return self.node / "data"

    @property
    def logs(self) -> Path:
        """Logs, one file for each program."""
        return self.node / "logs"

    @property
    def settings(self) -> Path:
        """Configuration files and certificates."""
        return self.node / "settings"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.node / "kubeconfig"

    @property
    def control(self) -> Path:
        """Socket at which the node's first process accepts orders."""
        return self.node / "control"

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that mark this cluster's resources outside its directory.

        Without `make_identity` they are a hash of the path, as earlier versions of this module marked a cluster.
        """
        with contextlib.suppress(FileNotFoundError):
            return self._identity.read_text().strip()
        return hashlib.sha256(str(self.base).encode()).hexdigest()[:8]

    def make_identity(self) -> None:
        """Choose the mark at random, once for each directory.

        A hash of the path would not be unique: another root directory on this machine may have a cluster at the same
        path, and loop devices and control groups are visible from both.
        """
        if not self._identity.exists():
            unfinished = self._identity.with_suffix(".new")
            unfinished.write_text(f"{secrets.token_hex(4)}\n")
            unfinished.replace(self._identity)

    @property
    def _identity(self) -> Path:
        return self.base / "identity"

    @property
    def link(self) -> str:
        """This machine's end of the veth pair to the node."""
        return f"cdi-{self.identity}"

    @property
    def loop_tag(self) -> str:
        """Tag written into each loop device."""
        return f"cdi-cluster-{self.identity}"

    @property
    def cgroup(self) -> str:
        """Control group of all pods, at the top of each hierarchy."""
        return f"cdi-cluster-{self.identity}"
