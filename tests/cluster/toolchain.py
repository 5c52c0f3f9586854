"""The Go toolchain that builds the test cluster's programs.

    python -m tests.cluster.toolchain

prints the path of the selected toolchain, and fails if there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from tests.cluster.layout import ClusterError, Layout

MINIMUM = (1, 26)
"""Minimum version of Helm; Kubernetes needs less."""

SYSTEM_GO = "/usr/local/go/bin"
"""Location in Go's own installation instructions."""

_TIMEOUT = 60.0  # seconds for `go version`


def find_go(layout: Layout) -> str:
    """Return the path of a new enough Go from PATH, /usr/local/go, or scripts/setup.

    Raises:
        ClusterError: There is none.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), SYSTEM_GO, str(layout.toolchain / "bin")))
    seen = []
    for directory in path.split(os.pathsep):
        program = shutil.which("go", path=directory)
        if program is None:
            continue
        version = _version(program)
        if version >= MINIMUM:
            return program
        seen.append(f"{program} is {'.'.join(map(str, version)) or 'broken'}")
    wanted = ".".join(map(str, MINIMUM))
    found = f" ({'; '.join(dict.fromkeys(seen))})" if seen else ""
    raise ClusterError(f"missing: Go {wanted} or later{found}; scripts/setup cluster installs it")


def _version(program: str) -> tuple[int, ...]:
    """Return the program's version, or an empty tuple if it is unknown."""
    try:
        done = subprocess.run(
            [program, "env", "GOVERSION"],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            cwd="/",  # a go.mod in the working directory may select another toolchain
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, found.groups())) if found and done.returncode == 0 else ()


if __name__ == "__main__":
    try:
        print(find_go(Layout.default()))
    except ClusterError as error:
        sys.exit(f"cluster: {error}")
