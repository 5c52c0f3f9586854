"""The CSI project's conformance tests for the cluster's CSI driver, over real loop devices and mounts."""

import os
import subprocess

import pytest

from tests.cluster import build
from tests.cluster.layout import Layout
from tests.cluster.toolchain import find_go


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_driver_conforms():
    done = subprocess.run(
        # The same build flags as the driver's, so most packages are in Go's cache.
        [find_go(Layout.default()), "test", "-trimpath", "-count=1", "./..."],
        cwd=build._CSI,
        env=build.go_environment(Layout.default()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
