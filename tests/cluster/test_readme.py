"""The README's commands for a cluster, as they are written there, from the installation to what is left of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster import cdi_image
from tests.cluster.objects import is_phase, phase
from tests.cluster.settings import kept_config
from tests.cluster.test_chart import SLOW, Release, definitions, helm, unless_taken  # noqa: F401  fixtures
from tests.cluster.volumes import MIB, digest, disk, sha256
from tests.faults.server import FaultServer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
DISK = disk(16 * MIB, seed=9)


def commands() -> str:
    """Those of the section on clusters, without prompts.  The image is there: to build it has tests of its own."""
    section = TEXT[TEXT.index("## In a cluster") :]
    (text,) = re.findall(r"^```shell-session\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[:1]
    lines = re.sub(r"^\$ ", "", text, flags=re.MULTILINE).splitlines(keepends=True)
    assert lines[0].startswith("scripts/image --name registry.example.org/cdi:0.1.0 ")
    return "".join(lines[1:])


def manifest() -> str:
    """The one that the README begins with."""
    text = re.search(r"^```yaml\n(# golden.yaml\n.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert text is not None
    return text[1]


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.alone
def test_the_readmes_commands_work_as_they_are_written(cluster, helm, definitions, tmp_path) -> None:  # noqa: F811
    kubectl = cluster.kubectl
    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where pods reach this machine")
    unless_taken(kubectl)
    repository, _, tag = cdi_image.provide(cluster).rpartition(":")
    with (
        cluster.namespace("readme") as work,
        kept_config(kubectl),
        FaultServer(host=cluster.host_address) as server,
    ):
        (tmp_path / "disk.raw").write_bytes(DISK)
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "guest.qcow2"]
        subprocess.run(convert, check=True, cwd=tmp_path)
        url = server.put("/guest.qcow2", (tmp_path / "guest.qcow2").read_bytes())
        (tmp_path / "golden.yaml").write_text(manifest())
        (tmp_path / "charts").symlink_to(ROOT / "charts")
        # A user's: it has the cluster and the namespace in it.
        config = yaml.safe_load(Path(work.kubeconfig).read_text())
        for context in config["contexts"]:
            context["context"]["namespace"] = work.namespace
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        programs = tmp_path / "bin"
        programs.mkdir()
        program(programs, "kubectl", f'exec {work.program} "$@"')
        # The definitions that other tests have made are theirs.
        program(programs, "helm", f'[ "$1" != install ] || set -- "$@" --take-ownership\nexec {helm.program} "$@"')
        program(programs, "cdi", f'PYTHONPATH={ROOT} exec {sys.executable} -m cdi.cli.main "$@"')
        script = commands()
        for written, here in (
            ("registry.example.org/cdi", repository),
            ("--set image.tag=0.1.0", f"--set-string image.tag={tag}"),
            ("https://images.example.org", url.removesuffix("/guest.qcow2")),
        ):
            assert written in script
            script = script.replace(written, here)
        # Of this driver nobody knows what its volumes can be: the remedy that an import would tell.
        profile = {"spec": {"claimPropertySets": [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}]}}
        told = "".join(
            f"until kubectl {words}; do sleep 1; done\n"
            for words in (
                "get storageprofile csi",
                f"patch storageprofile csi --type=merge --patch='{json.dumps(profile)}'",
            )
        )
        assert "\nsed " in script
        script = script.replace("\nsed ", f"\n{told}sed ")
        environment = {
            **{name: text for name, text in os.environ.items() if name != "CDI_HOME"},
            **helm.environment,
            "HOME": str(tmp_path),
            "KUBECONFIG": str(tmp_path / "kubeconfig"),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        release = Release(cluster, helm, "cdi", kubectl.within("cdi"), work)
        try:
            # What goes on in the background ends with the script.
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || :' EXIT\n{script}"],
                cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=SLOW, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{release.pods()}"
            for name in ("golden", "mine"):
                assert phase(work.wait("datavolume", name, "filled", is_phase("Succeeded"), SLOW)) == "Succeeded"
                assert digest(cluster, work, name, "Filesystem", len(DISK)) == sha256(DISK)
        finally:
            if release.installed():
                release.uninstall()
            left = release.left()
            kubectl.delete("namespace", "cdi")
            # Whoever comes next makes it anew, knowing nothing again.
            kubectl.delete("storageprofile", "csi")
        assert left == set()
        assert kubectl.get_all("cdis") == []
        for name in ("golden", "mine"):
            assert phase(work.get("persistentvolumeclaim", name)) == "Bound"
