"""Virtual environment with the clients that the tests run; none of them is a dependency of the project."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdi.cli.elapsed import Elapsed
from tests.cluster.build import keep_program
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import SOURCES, ClusterError, Layout

_LOCK = SOURCES / "clients" / "requirements.txt"
_COLLECTIONS = tuple(f"ansible_collections/{name}/" for name in ("kubevirt/core", "kubernetes/core", "ansible/posix"))
"""Directories to unpack from the wheel of `ansible`, which has 20,000 files; the last prints results as JSON."""
_INSTALL_TIMEOUT = 600.0  # seconds for one command of pip
_RUN_TIMEOUT = 600.0  # seconds for one run of a client


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Result of a client that has ended."""

    exit: int
    out: str
    errors: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """The environment, and how its clients reach the cluster."""

    python: Path
    kubectl: Kubectl
    home: Path
    """Home directory of the clients, for their configuration and caches."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a client; it finds the cluster's own kubectl first."""
        return {
            "PATH": os.pathsep.join((str(Path(self.kubectl.program).parent), str(self.python.parent), os.defpath)),
            "HOME": str(self.home),
            "KUBECONFIG": str(self.kubectl.kubeconfig),
            "LC_ALL": "C.UTF-8",
        }

    def run(self, *arguments: str, more: Mapping[str, str] | None = None, given: str = "") -> Done:
        """Run the environment's Python with these arguments."""
        done = subprocess.run(
            [self.python, *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=_RUN_TIMEOUT,
            cwd=self.home,
            env={**self.environment(), **(more or {})},
        )
        return Done(exit=done.returncode, out=done.stdout, errors=done.stderr)


def build(layout: Layout) -> Path:
    """Return the path of the environment's Python, installing the locked clients if they are missing.

    Raises:
        ClusterError: A client cannot be installed.
    """
    inputs = (_LOCK.read_bytes(), sys.version, sys.executable, _COLLECTIONS)
    return keep_program(layout, "clients", inputs, _install) / "bin" / "python"


def _install(directory: Path) -> None:
    environment, wheels = directory / "clients", directory / "wheels"
    with Elapsed("cluster: installing clients of CDI"):
        # Built with the project's own hatchling: an isolated build would download a package without a hash.
        _pip(
            "download or build", "wheel", "--require-hashes", "--no-deps", "--no-build-isolation",
            f"--wheel-dir={wheels}", f"--requirement={_LOCK}",
        )  # fmt: skip
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        (collections,) = wheels.glob("ansible-[0-9]*.whl")
        others = [str(path) for path in sorted(wheels.iterdir()) if path != collections]
        _pip(
            "install", f"--python={environment / 'bin' / 'python'}", "install", "--no-index", "--no-deps",
            "--no-compile", *others,
        )  # fmt: skip
        (packages,) = environment.glob("lib/python*/site-packages")
        _unpack(collections, packages)
        for path in wheels.iterdir():
            path.unlink()
        wheels.rmdir()


def _unpack(wheel: Path, packages: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(_COLLECTIONS)]
        for collection in _COLLECTIONS:
            if f"{collection}MANIFEST.json" not in names:
                raise ClusterError(f"{wheel.name} has no collection {collection}; lock another version of ansible")
        archive.extractall(packages, names)


def _pip(what: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"pip did not {what} the clients of {_LOCK} within {_INSTALL_TIMEOUT:.0f} s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), done.returncode)
        raise ClusterError(
            f"pip cannot {what} the clients of {_LOCK}: {reason}. Use an index that has them, "
            "or lock others with scripts/lock --clients"
        )
