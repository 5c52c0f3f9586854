"""The controller as a process on this machine, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cdi_image
from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl

_ROOT = Path(__file__).parents[2]
_TIMEOUT = 180.0  # seconds until the controller is in sync on a busy machine
_DEFINED: set[Path] = set()
"""The kubeconfigs of clusters in which this process has installed the definitions."""


class Controller:
    """A controller process that can be killed and restarted; it acts in one namespace, which also holds its Lease."""

    def __init__(self, cluster: Cluster, namespace: str, image: str, *options: str, everywhere: bool = False) -> None:
        self._namespace = namespace
        scope = () if everywhere else (f"--watch-namespaces={namespace}",)
        self._command = [
            sys.executable, "-m", "cdi.cli.main", "controller", f"--kubeconfig={cluster.kubectl.kubeconfig}",
            f"--namespace={namespace}", f"--image={image}", "--port=0", *scope, *options,
        ]  # fmt: skip
        self._log = tempfile.NamedTemporaryFile(prefix="controller-", suffix=".log", buffering=0)  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and return once it is the leader and in sync."""
        began = len(self.lines())
        self.begin()
        self.wait_line("caches are synchronized", after=began)

    def begin(self) -> None:
        """Start the process without waiting for it."""
        environment = {name: text for name, text in os.environ.items() if name not in ("CDI_HOME", "IMPORTER_IMAGE")}
        self._process = subprocess.Popen(
            self._command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def stop(self) -> int:
        """Send SIGTERM, as Kubernetes does, and return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def kill(self) -> None:
        """Send SIGKILL, as the kernel does when memory runs out."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._log.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of its log."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def text(self) -> str:
        return Path(self._log.name).read_text()

    def wait_line(self, message: str, after: int = 0) -> dict[str, Any]:
        """Return the first log line with this message, skipping the first `after` lines."""
        assert self._process is not None
        until = time.monotonic() + _TIMEOUT
        while time.monotonic() < until:
            for line in self.lines()[after:]:
                if line["message"] == message:
                    return line
            if self._process.poll() is not None:
                raise AssertionError(f"the controller ended with {self._process.returncode}: {self.text()[-4000:]}")
            time.sleep(0.05)
        raise AssertionError(f"the controller did not say {message!r}: {self.text()[-4000:]}")

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a GET request to its own HTTP server."""
        port = [line["port"] for line in self.lines() if line["message"] == "serving"][-1]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def processor_seconds(self) -> float:
        """Return its user and system CPU time so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Meddled(Controller):
    """A controller that runs inside a test program: `tests.cluster.kill_points` or `tests.cluster.cancellation`."""

    def __init__(self, cluster: Cluster, namespace: str, image: str, program: list[str], *options: str) -> None:
        """Prepare the command; `program` is the module's last name and its own arguments."""
        super().__init__(cluster, namespace, image, "--no-leader-election", *options)
        self._command = [sys.executable, "-m", f"tests.cluster.{program[0]}", *program[1:], *self._command[3:]]


def definitions(cluster: Cluster) -> None:
    """Install our custom resource definitions in the cluster, once for each process; no test removes them."""
    if cluster.kubectl.kubeconfig in _DEFINED:
        return
    given = f"--filename={_ROOT / 'crds'}"
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", given)
    cluster.kubectl.run("wait", "--for=condition=Established", given, "--timeout=150s")
    _DEFINED.add(cluster.kubectl.kubeconfig)


@contextlib.contextmanager
def controller(
    cluster: Cluster, namespace: Kubectl, *options: str, image: str | None = None, everywhere: bool = False
) -> Iterator[Controller]:
    """Run a controller for one namespace, or with `everywhere` for the whole cluster."""
    definitions(cluster)
    name = namespace.namespace
    assert name
    made = Controller(cluster, name, image or cdi_image.provide(cluster), *options, everywhere=everywhere)
    try:
        made.start()
        yield made
        unexpected = [line for line in made.lines() if line["message"].startswith("unexpected") or "traceback" in line]
        assert not unexpected, unexpected[:2]
    finally:
        made.close()


@pytest.fixture()
def running(cluster: Cluster, namespace: Kubectl) -> Iterator[Controller]:
    """Run a controller in the test's namespace."""
    with controller(cluster, namespace) as made:
        yield made
