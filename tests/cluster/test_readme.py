"""The README's cluster commands as written, from the installation to what remains after uninstalling."""

from __future__ import annotations

import pytest

from tests.cluster import cdi_image
from tests.cluster.objects import is_phase, phase
from tests.cluster.settings import kept_config
from tests.cluster.test_chart import SLOW, Release, definitions, helm, unless_taken  # noqa: F401  fixtures
from tests.cluster.volumes import digest, sha256
from tests.cluster.walkthrough import COMPLETE_PROFILE, DISK, environment, guest_image
from tests.doc_blocks import README, ROOT, blocks, shell
from tests.faults.server import FaultServer


def manifest() -> str:
    """Return the README's first manifest, whose block is executed on one machine."""
    return next(block.text for block in blocks(ROOT / "README.md") if block.file == "golden.yaml")


def test_the_readme_names_this_test():
    assert README["shell-session"].endswith("::test_the_readmes_commands_work_as_they_are_written")


@pytest.mark.alone
def test_the_readmes_commands_work_as_they_are_written(cluster, helm, definitions, tmp_path, request) -> None:  # noqa: F811
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
        readme = shell(request.node.nodeid, tmp_path)
        url = server.put("/guest.qcow2", guest_image(readme.directory))
        (readme.directory / "golden.yaml").write_text(manifest())
        readme.environment = environment(cluster, helm, work, readme.directory, tmp_path / "user")
        # The image exists; building it is tested elsewhere.
        readme.skipped = ("scripts/image ",)
        readme.replacements = {
            "registry.example.org/cdi": repository,
            "--set image.tag=0.1.0": f"--set-string image.tag={tag}",
            "--set image.tag=0.1.1": f"--set-string image.tag={tag}",
            "https://images.example.org": url.removesuffix("/guest.qcow2"),
            "sed 's|http://127": f"{COMPLETE_PROFILE}sed 's|http://127",
        }
        release = Release(cluster, helm, "cdi", kubectl.within("cdi"), work)
        try:
            readme.run(timeout=SLOW)
            for name in ("golden", "mine"):
                assert phase(work.wait("datavolume", name, "filled", is_phase("Succeeded"), SLOW)) == "Succeeded"
                assert digest(cluster, work, name, "Filesystem", len(DISK)) == sha256(DISK)
        finally:
            if release.installed():
                release.uninstall()
            for each in release.system.get_all("pods"):  # which are deleted after their owners
                release.system.wait_gone("pod", each["metadata"]["name"], SLOW)
            left = release.left()
            kubectl.delete("namespace", "cdi")
            # The next test requires a StorageClass without a profile.
            kubectl.delete("storageprofile", "csi")
        assert left == set()
        assert kubectl.get_all("cdis") == []
        for name in ("golden", "mine"):
            assert phase(work.get("persistentvolumeclaim", name)) == "Bound"
