"""Helm for the chart's tests, built from its Go modules and cached."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cdi.cli.elapsed import Elapsed
from tests.cluster.build import go_environment, keep_program
from tests.cluster.layout import ClusterError, Layout
from tests.cluster.toolchain import find_go

VERSION = "v3.22.0"
CHART = Path(__file__).resolve().parents[2] / "charts" / "cdi"

_KUBERNETES = ("1", "34")
"""Kubernetes version that templates are rendered for without a cluster: the test cluster's."""
_LINKER = " ".join(
    (
        "-s -w",
        f"-X helm.sh/helm/v3/internal/version.version={VERSION}",
        *(
            f"-X helm.sh/helm/v3/pkg/{package}.k8sVersion{part}={number}"
            for package in ("lint/rules", "chartutil")
            for part, number in zip(("Major", "Minor"), _KUBERNETES, strict=True)
        ),
    )
)


class HelmError(Exception):
    """Helm failed; the text is its error message."""


def build(layout: Layout) -> Path:
    """Return the path of the program, building it if it is missing.

    Raises:
        ClusterError: The build failed.
    """
    return keep_program(layout, "helm", (VERSION, _LINKER), partial(_install, layout))


def _install(layout: Layout, directory: Path) -> None:
    go = find_go(layout)
    layout.go.mkdir(parents=True, exist_ok=True)
    with Elapsed(f"cluster: building Helm {VERSION}"):
        done = subprocess.run(
            [go, "install", "-trimpath", "-ldflags", _LINKER, f"helm.sh/helm/v3/cmd/helm@{VERSION}"],
            env={**go_environment(layout), "GOBIN": str(directory)},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ClusterError(f"Helm {VERSION} cannot be built: {lines[-1] if lines else done.returncode}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Helm:
    """Helm with an empty configuration of its own, in one namespace of the cluster."""

    program: Path
    home: Path
    """Directory for its configuration and caches."""
    kubeconfig: Path | None = None
    """None if no cluster is used."""
    namespace: str = "default"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def within(self, namespace: str) -> Helm:
        """Return the same Helm in another namespace."""
        return replace(self, namespace=namespace)

    def run(self, *arguments: str, values: Mapping[str, Any] | None = None, patience: float = 300.0) -> str:
        """Return what Helm prints; `values` override the chart's.

        Raises:
            HelmError: Helm failed.
        """
        command = [str(self.program), *arguments, f"--namespace={self.namespace}"]
        if values is not None:
            command.append("--values=-")
        done = subprocess.run(
            command,
            env={
                **self.environment,
                "HOME": str(self.home),
                **{f"HELM_{name}_HOME": str(self.home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")},
                # Without a kubeconfig, Helm must not use the user's.
                "KUBECONFIG": str(self.kubeconfig or self.home / "no-kubeconfig"),
            },
            input="" if values is None else json.dumps(values),
            capture_output=True,
            text=True,
            check=False,
            timeout=patience,
        )
        if done.returncode:
            raise HelmError(done.stderr.strip() or f"helm {arguments[0]} ended with {done.returncode}")
        return done.stdout

    def template(self, release: str, values: Mapping[str, Any] | None = None, *more: str) -> str:
        """Return the chart's rendered manifests, including hooks."""
        return self.run("template", release, str(CHART), *more, values=values or {})
