"""Builds of the cluster's programs and images, one for each set of inputs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cdi.cli.elapsed import Elapsed
from tests.cluster import images
from tests.cluster.layout import BASE_IMAGE, PAUSE_IMAGE, SOURCES, ClusterError, Layout
from tests.cluster.toolchain import find_go

KUBERNETES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
"""Names of the one binary that contains all of these programs."""

_PROGRAMS = SOURCES / "programs"
_CSI = SOURCES / "csi"
_MAX_OLD_BUILDS = 2  # builds of each kind besides the current one
_PACKAGES = {
    _PROGRAMS: (
        "./kubernetes",
        "./coredns",
        "github.com/kubernetes-csi/external-provisioner/v5/cmd/csi-provisioner",
        "github.com/kubernetes-csi/external-resizer/cmd/csi-resizer",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
    ),
    _CSI: ("./cmd/csi-driver", "./cmd/local-provisioner", "./cmd/pause"),
}
_SNAPSHOT_CRDS = "github.com/kubernetes-csi/external-snapshotter/client/v8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Directories of the builds; their names contain a hash of their inputs."""

    programs: Path
    csi: Path
    images: Path

    def program(self, name: str) -> str:
        """Return the path of a program, which is in one of two directories."""
        return str(next(path for path in (self.programs / name, self.csi / name) if path.exists()))

    @property
    def key(self) -> str:
        return f"{self.programs.name} {self.csi.name} {self.images.name}"


def build(layout: Layout, say: Callable[[str], None]) -> Built:
    """Build what is missing.

    Raises:
        ClusterError: A build failed.
    """
    layout.built.mkdir(parents=True, exist_ok=True)
    built = find(layout)
    if not (built.programs / "kubernetes").exists():
        say("building Kubernetes from Go modules: about 25 minutes of processor time, once")
        with _place(built.programs) as directory:
            _programs(layout, directory)
    if not (built.csi / "pause").exists():
        say("building the CSI driver")
        with _place(built.csi) as directory:
            _go_build(layout, _CSI, directory, "-s -w")
    if not (built.images / "base.tar").exists():
        with _place(built.images) as directory:
            images.pause(directory / "pause.tar", PAUSE_IMAGE, built.csi / "pause")
            images.base(directory / "base.tar", BASE_IMAGE)
    for directory in (built.programs, built.csi, built.images):
        os.utime(directory)
    _prune(layout, built)
    return built


def find(layout: Layout) -> Built:
    """Return where the builds of the current sources are, whether or not they exist yet."""
    programs = layout.built / f"programs-{_key(_sources(_PROGRAMS))}"
    csi = layout.built / f"csi-{_key(_sources(_CSI))}"
    parts = [f"{part} {part.stat().st_size} {part.stat().st_mtime_ns}" for part in images.base_parts()]
    key = _key([SOURCES / "images.py"], csi.name, *parts)
    return Built(programs=programs, csi=csi, images=layout.built / f"images-{key}")


def keep_program(layout: Layout, name: str, inputs: object, install: Callable[[Path], None]) -> Path:
    """Return the path of a program, after running `install` if these inputs have not been built yet.

    Builds of other inputs are removed. Exceptions of `install` are passed on.
    """
    directory = program_path(layout, name, inputs).parent
    layout.built.mkdir(parents=True, exist_ok=True)
    with (layout.built / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / name).exists():
            with _place(directory) as unfinished:
                install(unfinished)
            for old in layout.built.glob(f"{name}-*"):
                if old != directory:
                    shutil.rmtree(old, ignore_errors=True)
    return directory / name


def program_path(layout: Layout, name: str, inputs: object) -> Path:
    """Return where `keep_program` keeps the build of these inputs, whether or not it exists yet."""
    return layout.built / f"{name}-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]}" / name


def keep_go_program(layout: Layout, module: Path) -> Path:
    """Return the path of the program built from the Go module in this directory; its name is the module's.

    Raises:
        ClusterError: The build failed.
    """
    inputs = directory_inputs(module)

    def install(directory: Path) -> None:
        run_go(
            layout,
            module,
            "build",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags=-s -w",
            "-o",
            f"{directory}/{module.name}",
            ".",
        )

    return keep_program(layout, module.name, inputs, install)


def directory_inputs(directory: Path) -> list[tuple[str, bytes]]:
    """Return name and content of each file in a directory that something is built from, without Go's tests."""
    return [(str(path.relative_to(directory)), path.read_bytes()) for path in _sources(directory)]


def _sources(module: Path) -> list[Path]:
    return [path for path in sorted(module.rglob("*")) if path.is_file() and not path.name.endswith("_test.go")]


def _key(files: list[Path], *more: str) -> str:
    total = hashlib.sha256(repr((more, _VERSION_SETTINGS)).encode())
    for path in files:
        name = path.relative_to(SOURCES) if path.is_relative_to(SOURCES) else path.name
        total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:12]


@contextlib.contextmanager
def _place(final: Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `final` if the body succeeds."""
    unfinished = final.with_name(final.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    yield unfinished
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)


def _prune(layout: Layout, built: Built) -> None:
    for current in (built.programs, built.csi, built.images):
        kind = current.name.partition("-")[0]
        others = [path for path in layout.built.glob(f"{kind}-*") if path != current]
        for old in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_MAX_OLD_BUILDS:]:
            shutil.rmtree(old, ignore_errors=True)


_VERSION_SETTINGS = "-X k8s.io/component-base/version.{0}={1}"


def _programs(layout: Layout, directory: Path) -> None:
    found = re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)$", (_PROGRAMS / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, "go.mod pins Kubernetes"
    version, major, minor = found.groups()
    settings = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    linker = ["-s -w", *(_VERSION_SETTINGS.format(*each) for each in settings.items())]
    linker.append(f"-X k8s.io/client-go/pkg/version.gitVersion={version}")
    _go_build(layout, _PROGRAMS, directory, " ".join(linker))
    for name in KUBERNETES:
        (directory / name).symlink_to("kubernetes")
    crds = run_go(layout, _PROGRAMS, "list", "-m", "-f", "{{.Dir}}", _SNAPSHOT_CRDS).strip()
    (directory / "crds").mkdir()
    for path in sorted(Path(crds, "config", "crd").glob("snapshot.storage.k8s.io_*.yaml")):
        shutil.copyfile(path, directory / "crds" / path.name)


def _go_build(layout: Layout, module: Path, directory: Path, linker: str) -> None:
    run_go(
        layout, module, "build", "-trimpath", "-buildvcs=false", "-ldflags", linker, "-o", f"{directory}/",
        *_PACKAGES[module],
    )  # fmt: skip


def go_environment(layout: Layout) -> dict[str, str]:
    """Return the environment of Go commands, with caches of our own that `purge` can remove."""
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(layout.go / "build"),
        "GOMODCACHE": str(layout.go / "mod"),
        "GOFLAGS": "-modcacherw",
        "GOWORK": "off",
    }


def run_go(layout: Layout, module: Path, *arguments: str, cgo: bool = False) -> str:
    """Return the output of a Go command in a module; with `cgo`, packages may contain C.

    Raises:
        ClusterError: It failed.
    """
    go = find_go(layout)
    layout.go.mkdir(parents=True, exist_ok=True)
    with Elapsed(f"cluster: go {arguments[0]} in {module.name}"):
        done = subprocess.run(
            [go, *arguments],
            cwd=module,
            env={**go_environment(layout), "CGO_ENABLED": "1" if cgo else "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        print(done.stderr, file=sys.stderr, end="")
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ClusterError(f"go {arguments[0]} in {module.name} failed: {lines[-1] if lines else done.returncode}")
    return done.stdout
