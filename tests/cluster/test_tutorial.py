"""The tutorial for a cluster, and the guides' blocks that need one, executed as written."""

from __future__ import annotations

import pytest

from tests.cluster import cdi_image
from tests.cluster.objects import is_phase, phase
from tests.cluster.settings import kept_config
from tests.cluster.test_chart import SLOW, Release, definitions, helm, unless_taken  # noqa: F401  fixtures
from tests.cluster.volumes import digest, sha256
from tests.cluster.walkthrough import COMPLETE_PROFILE, DISK, PROFILE, environment, guest_image
from tests.doc_blocks import shell
from tests.faults.server import FaultServer

pytestmark = [pytest.mark.alone, pytest.mark.timeout(1800)]


@pytest.fixture
def free_cluster(cluster):
    """Yield a cluster without another installation, whose pods reach this machine."""
    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where pods reach this machine")
    unless_taken(cluster.kubectl)
    with kept_config(cluster.kubectl):
        yield cluster
    # The next test requires a StorageClass without a profile.
    cluster.kubectl.run("delete", "storageprofile", "csi", "--ignore-not-found")


def test_the_lesson_in_a_cluster(free_cluster, helm, definitions, tmp_path, request):  # noqa: F811
    repository, _, tag = cdi_image.provide(free_cluster).rpartition(":")
    kubectl = free_cluster.kubectl
    with (
        free_cluster.namespace("tutorial") as work,
        FaultServer(host=free_cluster.host_address) as server,
    ):
        lesson = shell(request.node.nodeid, tmp_path)
        url = server.put("/guest.qcow2", guest_image(lesson.directory))
        lesson.environment = environment(free_cluster, helm, work, lesson.directory, tmp_path / "user")
        lesson.replacements = {
            "registry.example.org/cdi": repository,
            "--set image.tag=0.1.0": f"--set-string image.tag={tag}",
            "https://images.example.org": url.removesuffix("/guest.qcow2"),
            "kubectl apply -f golden.yaml": f"{COMPLETE_PROFILE}kubectl apply -f golden.yaml",
            # Their content is compared first; they are deleted with the namespace.
            "kubectl delete datavolume golden uploaded machine-1": "kubectl get datavolume golden uploaded machine-1",
        }
        release = Release(free_cluster, helm, "cdi", kubectl.within("cdi"), work)
        try:
            lesson.run(timeout=3 * SLOW)
            assert not release.installed()
            for name in ("golden", "uploaded", "machine-1"):
                assert digest(free_cluster, work, name, "Filesystem", len(DISK)) == sha256(DISK)
        finally:
            if release.installed():
                release.uninstall()
            left = release.left()
            kubectl.delete("namespace", "cdi")
        assert left == set()


def test_the_guides_commands_work(free_cluster, helm, definitions, tmp_path, request):  # noqa: F811
    """The guides assume an installation and a finished DataVolume ``golden``."""
    repository, _, tag = cdi_image.provide(free_cluster).rpartition(":")
    kubectl = free_cluster.kubectl
    with free_cluster.namespace("cdi") as system, free_cluster.namespace("guides") as work:
        release = Release(free_cluster, helm, "cdi", system, work)
        try:
            values = {"image": {"repository": repository, "tag": tag}}
            release.install(values, "--take-ownership")
            kubectl.wait("storageprofile", "csi", "made", lambda body: "status" in body, SLOW)
            kubectl.merge("storageprofile", "csi", PROFILE)
            work.apply(
                {
                    "apiVersion": "cdi.kubevirt.io/v1beta1",
                    "kind": "DataVolume",
                    "metadata": {"name": "golden"},
                    "spec": {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "16Mi"}}}},
                }
            )
            assert phase(work.wait("datavolume", "golden", "filled", is_phase("Succeeded"), SLOW)) == "Succeeded"
            guides = shell(request.node.nodeid, tmp_path, replacements={"storageprofile fast": "storageprofile csi"})
            guides.environment = environment(free_cluster, helm, work, guides.directory, tmp_path / "user")
            guides.run(timeout=2 * SLOW)
            owners = work.get("persistentvolumeclaim", "golden")["metadata"].get("ownerReferences") or []
            assert owners == []
        finally:
            if release.installed():
                release.uninstall()
