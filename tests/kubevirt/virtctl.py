"""``virtctl``, built from KubeVirt's Go module."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.cluster.build import keep_go_program
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import SOURCES, Layout

_TIMEOUT = 600.0  # seconds


def virtctl(kubectl: Kubectl, home: Path, *arguments: str) -> str:
    """Return what virtctl prints in a namespace; `home` is its home directory.

    Raises:
        AssertionError: It failed.
    """
    program = keep_go_program(Layout.default(), SOURCES / "virtctl")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubectl.kubeconfig)}
    command = [str(program), *arguments, f"--namespace={kubectl.namespace}"]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, timeout=_TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"virtctl {' '.join(arguments)}: {done.stdout}"
    return done.stdout
