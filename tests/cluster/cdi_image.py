"""The project's own image in the cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.layout import ClusterError

CDI_IMAGE = "images.cdi.test/cdi:1"
_SCRIPT = Path(__file__).parents[2] / "scripts/image"


def provide(cluster: Cluster) -> str:
    """Return the image's name after making it available to the cluster.

    On a foreign cluster, CDI_TEST_CDI_IMAGE names it.
    """
    if cluster.layout is None:
        name = os.environ.get("CDI_TEST_CDI_IMAGE", "")
        if not name:
            import pytest  # scripts/cluster uses this module without it

            pytest.skip("CDI_TEST_CDI_IMAGE does not say which image the cluster can pull")
        return name
    archive = archived()
    loaded = cluster.layout.node / "cdi-image"
    if not loaded.exists() or loaded.read_text() != archive.name:
        cluster.load_image(archive)
        loaded.write_text(archive.name)
    return CDI_IMAGE


def archived() -> Path:
    """Return the path of the image archive, building it if it is missing.

    Raises:
        ClusterError: It cannot be built; the script has printed the reason.
    """
    done = subprocess.run([sys.executable, _SCRIPT], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ClusterError("scripts/image failed")
    return Path(done.stdout.strip())
