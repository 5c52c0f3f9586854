"""Start, status and removal of the test cluster."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.cluster import build, components, leftovers, node, pki
from tests.cluster.build import Built
from tests.cluster.direct import direct
from tests.cluster.layout import (
    BASE_IMAGE,
    HOST_ADDRESS,
    NODE,
    NODE_ADDRESS,
    PAUSE_IMAGE,
    SOURCES,
    ClusterError,
    Layout,
)

_NEEDED = {
    "containerd": "containerd", "containerd-shim-runc-v2": "containerd", "ctr": "containerd", "runc": "runc",
    "iptables": "iptables", "iptables-save": "iptables", "iptables-restore": "iptables", "ip": "iproute2",
    "nsenter": "util-linux", "mount": "mount", "losetup": "mount", "blkid": "util-linux",
    "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "busybox": "busybox-static",
    "curl": "curl", "ldd": "libc-bin",
}  # fmt: skip
_CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}
_MODULES = ("overlay", "br_netfilter", "loop", "veth")
_TIMEOUT = 120.0  # seconds for one step

Say = Callable[[str], None]


def check_requirements() -> None:
    """Raise ClusterError with what this machine lacks, in one line."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ClusterError("the test cluster needs Linux and root: it makes namespaces, mounts and loop devices")
    missing = sorted({package for program, package in _NEEDED.items() if shutil.which(program) is None})
    if missing:
        raise ClusterError(f"missing: {', '.join(missing)} (scripts/setup cluster installs them)")
    components.cni_directory()
    for module in _MODULES:  # built in, already loaded, or loadable
        if shutil.which("modprobe"):
            subprocess.run(["modprobe", "--quiet", module], check=False, stdin=subprocess.DEVNULL)
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        raise ClusterError("the kernel has no overlay file system")
    if not os.path.exists("/dev/loop-control"):
        raise ClusterError("the kernel has no loop devices")
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        there = set(unified.read_text().split())
    else:
        there = {path.name for path in Path("/sys/fs/cgroup").glob("*") if path.is_dir()}
        there |= {name for path in Path("/sys/fs/cgroup").glob("*,*") for name in path.name.split(",")}
    if lacking := _CONTROLLERS - there:
        raise ClusterError(f"control groups without {', '.join(sorted(lacking))}")


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the lock that serializes starting and removing the cluster."""
    layout.base.mkdir(parents=True, exist_ok=True)
    with open(layout.base / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def running(layout: Layout) -> bool:
    """Return whether the cluster was started completely and its node is running."""
    return (layout.node / "up").exists() and leftovers.process(layout) is not None


def up(layout: Layout, say: Say) -> bool:
    """Start the cluster unless one of the current builds is running; return whether it was started.

    Raises:
        ClusterError: The cluster cannot be started; the text is one line with the reason.
    """
    with locked(layout):
        if running(layout) and (layout.node / "up").read_text() == build.find(layout).key:
            return False
        check_requirements()
        built = build.build(layout, say)
        if layout.node.exists():
            say("taking down what was there")
        leftovers.remove(layout)
        layout.make_identity()
        try:
            _bring_up(layout, built, say)
        except (ClusterError, OSError, subprocess.CalledProcessError) as error:
            kept = _keep_logs(layout)
            leftovers.remove(layout)
            raise ClusterError(f"{error} (the logs are in {kept})") from error
        return True


def down(layout: Layout) -> None:
    """Remove the cluster and all of its state, if there is one."""
    with locked(layout):
        leftovers.remove(layout)


def _bring_up(layout: Layout, built: Built, say: Say) -> None:
    if interface := _owner_of_address():
        raise ClusterError(f"{interface} has the address {HOST_ADDRESS} already: is another test cluster up?")
    for directory in (layout.node, layout.logs, layout.data):
        directory.mkdir(parents=True, exist_ok=True)
    pki.make(layout.settings, layout.kubeconfig)
    components.write_settings(layout)
    leftovers.prepare(layout)
    _launch(layout)

    def start(*programs: components.Component) -> None:
        for program in programs:
            node.order(layout, do="start", name=program.name, argv=list(program.argv))

    start(components.runtime(layout), components.store(layout, built), components.api_server(layout, built))
    wait("containerd", lambda: (layout.data / "run" / "containerd.sock").is_socket())
    for archive, name in (("pause", PAUSE_IMAGE), ("base", BASE_IMAGE)):
        load_image(layout, built.images / f"{archive}.tar")
        say(f"image {name}")
    wait_ready(layout)
    api = direct(layout.kubeconfig)
    say("API server")
    start(*components.control_plane(layout, built), *components.node_agents(layout, built))
    _apply(layout, built, *sorted((built.programs / "crds").glob("*.yaml")))
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    wait("the snapshot kinds", lambda: all(_condition(each, "Established") for each in api.read(crds)["items"]))
    _apply(layout, built, *sorted((SOURCES / "manifests").glob("*.yaml")))
    say("storage classes")
    wait("the node", lambda: _condition(api.read(f"/api/v1/nodes/{NODE}"), "Ready"))
    wait("the CSI driver", lambda: bool(api.read(f"/apis/storage.k8s.io/v1/csinodes/{NODE}")["spec"]["drivers"]))
    wait("the default service account", lambda: bool(api.read("/api/v1/namespaces/default/serviceaccounts/default")))
    wait("DNS", lambda: "coredns" in status(layout) and _dns_ready())
    (layout.node / "up").write_text(built.key)


def _owner_of_address() -> str:
    """Return the interface that already has our address of the veth pair, "" if none has."""
    command = ["ip", "-json", "address", "show", "to", HOST_ADDRESS]
    shown = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    return next((each["ifname"] for each in json.loads(shown or "[]") if "ifname" in each), "")


def _launch(layout: Layout) -> None:
    # The cluster must not use the machine's proxies, nor anything else of the caller's environment.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(layout.data),
        "LC_ALL": "C.UTF-8",
        "CDI_CACHE": str(layout.base.parent),
        "PYTHONPATH": str(SOURCES.parents[1]),
    }
    with open(layout.logs / "node.log", "a") as log:
        subprocess.run(
            [sys.executable, "-P", "-m", "tests.cluster.node"],
            check=True,
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def wait(what: str, ready: Callable[[], bool], patience: float = _TIMEOUT) -> None:
    """Wait until `ready` returns true; OSError, KeyError and TypeError mean not yet.

    Raises:
        ClusterError: It was not ready after `patience` seconds.
    """
    until = time.monotonic() + patience
    while True:
        problem = ""
        try:
            if ready():
                return
        except (OSError, KeyError, TypeError) as error:
            problem = f": {error}"
        if time.monotonic() > until:
            raise ClusterError(f"{what} did not come up within {patience:.0f} s{problem}")
        time.sleep(0.1)


def wait_ready(layout: Layout, patience: float = _TIMEOUT) -> None:
    """Wait until the API server answers.

    Raises:
        ClusterError: It did not answer within `patience` seconds.
    """
    api = direct(layout.kubeconfig)
    wait("the API server", lambda: api.read("/readyz") == "ok", patience)


def _condition(document: dict[str, Any], kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in document["status"]["conditions"])


def _dns_ready() -> bool:
    import http.client

    connection = http.client.HTTPConnection(NODE_ADDRESS, components.DNS_READY_PORT, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    finally:
        connection.close()


def _apply(layout: Layout, built: Built, *manifests: Path) -> None:
    command = [built.program("kubectl"), f"--kubeconfig={layout.kubeconfig}", "apply", "--server-side"]
    done = subprocess.run(
        [*command, *(f"--filename={path}" for path in manifests)],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=client_environment(),
    )
    if done.returncode:
        raise ClusterError(f"kubectl apply: {done.stderr.strip()}")


def client_environment() -> dict[str, str]:
    """Return the environment of clients on this machine, with the cluster exempt from proxies."""
    already = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    around = ",".join(filter(None, (already, "198.18.0.0/15", NODE_ADDRESS)))
    return {**os.environ, "NO_PROXY": around, "no_proxy": around}


def inside(layout: Layout, *argv: str) -> list[str]:
    """Return the command that runs `argv` in the node.

    Raises:
        ClusterError: No node is running.
    """
    first = leftovers.process(layout)
    if first is None:
        raise ClusterError("no test cluster is up")
    return ["nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--", *argv]


def load_image(layout: Layout, archive: Path) -> None:
    """Load the images of an OCI or Docker archive on the node.

    Raises:
        ClusterError: containerd rejected the archive.
    """
    command = inside(
        layout,
        "ctr",
        f"--address={components.CONTAINERD_SOCKET}",
        "--namespace=k8s.io",
        "images",
        "import",
        str(archive),
    )
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ClusterError(f"{archive.name}: {done.stderr.strip()}")


def status(layout: Layout) -> dict[str, Any]:
    """Return the node's programs with pid in the node, wanted state, number of starts and seconds since the last start.

    The result is empty if no cluster is up.
    """
    if leftovers.process(layout) is None:
        return {}
    try:
        return node.order(layout, do="status")
    except OSError:
        return {}


def _keep_logs(layout: Layout) -> Path:
    kept = layout.base / "logs-of-the-last-failure"
    shutil.rmtree(kept, ignore_errors=True)
    if layout.logs.exists():
        shutil.copytree(layout.logs, kept)
    return kept
