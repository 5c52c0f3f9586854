"""Environment of a user who follows the documentation in a cluster: programs, kubeconfig, an image to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.helm import Helm
from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import MIB, disk

ROOT = Path(__file__).parents[2]
DISK = disk(16 * MIB, seed=9)
PROFILE = {"spec": {"claimPropertySets": [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}]}}
COMPLETE_PROFILE = "".join(
    f"until kubectl {words}; do sleep 1; done\n"
    for words in (
        "get storageprofile csi",
        f"patch storageprofile csi --type=merge --patch='{json.dumps(PROFILE)}'",
    )
)
"""The remedy that an import would suggest, because the capabilities of the test cluster's driver are unknown."""


def guest_image(directory: Path) -> bytes:
    """Write ``guest.qcow2``, an image of `DISK`, and return its content."""
    (directory / "disk.raw").write_bytes(DISK)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "guest.qcow2"]
    subprocess.run(convert, check=True, cwd=directory)
    return (directory / "guest.qcow2").read_bytes()


def environment(cluster: Cluster, helm: Helm, work: Kubectl, directory: Path, home: Path) -> dict[str, str]:
    """Return the environment of a user whose kubeconfig selects the cluster and the namespace of `work`.

    `directory` is the user's working directory; it gets links to the chart and the definitions.
    """
    for name in ("charts", "crds"):
        (directory / name).symlink_to(ROOT / name)
    config = yaml.safe_load(Path(work.kubeconfig).read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = work.namespace
    (home / "kubeconfig").write_text(yaml.safe_dump(config))
    programs = home / "bin"
    programs.mkdir()
    _program(programs, "kubectl", f'exec {work.program} "$@"')
    # Other tests own the definitions that they have installed.
    _program(programs, "helm", f'[ "$1" != install ] || set -- "$@" --take-ownership\nexec {helm.program} "$@"')
    _program(programs, "cdi", f'PYTHONPATH={ROOT} exec {sys.executable} -m cdi.cli.main "$@"')
    return {
        **{name: text for name, text in os.environ.items() if name != "CDI_HOME"},
        **helm.environment,
        "HOME": str(home),
        "KUBECONFIG": str(home / "kubeconfig"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }


def _program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
