"""ObjectTransfers on the cluster: volumes get other namespaces and names and keep their content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster import cdi_image
from tests.cluster.cdi import Meddled, controller, definitions
from tests.cluster.kubectl import Kubectl
from tests.cluster.servers import serving
from tests.cluster.volumes import MIB, conditions, data_volume, digest, disk, sha256, wait_phase
from tests.cluster.worker_pods import looker

Document = dict[str, Any]
SIZE = 8 * MIB
DISK = disk(SIZE, seed=6)
FILES, BLOCK = "Filesystem", "Block"
TIMEOUT = 300.0  # seconds, for what takes ten on an idle machine
LABELS = {"instancetype.kubevirt.io/default-preference": "fedora"}
GOLDEN = {"disk": FILES, "device": BLOCK, "renamed": FILES, "used": FILES, "waiting": FILES, "recalled": FILES,
          "late": BLOCK, "refused": FILES, "claim": BLOCK}  # fmt: skip
"""DataVolumes to create, and their volume modes."""


@pytest.fixture(scope="module")
def places(cluster, tmp_path_factory):
    """Run a controller for two namespaces and a future third one; the volumes are in the first."""
    with (
        cluster.namespace("transfer") as source,
        cluster.namespace("transfer-to") as target,
        serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as servers,
    ):
        later = target.within(f"{target.namespace}-later")
        covered = f"--watch-namespaces={source.namespace},{target.namespace},{later.namespace}"
        with controller(cluster, source, covered):
            servers.nginx.put("disk.raw", DISK)
            image = {"http": {"url": servers.nginx.url("disk.raw"), "checksum": f"sha256:{sha256(DISK)}"}}
            source.create(*(data_volume(name, image, "csi", mode=mode, labels=LABELS) for name, mode in GOLDEN.items()))
            for name in GOLDEN:
                wait_phase(source, name, "Succeeded")
            # A claim without an owner: its DataVolume is deleted and leaves it.
            source.run("delete", "datavolume", "claim", "--cascade=orphan")
            # The controller reconciles the claim once more without its DataVolume.
            source.wait("persistentvolumeclaim", "claim", "without owner",
                        lambda one: not one["metadata"].get("ownerReferences"), TIMEOUT)  # fmt: skip
            try:
                yield source, target, later
            finally:
                # ObjectTransfers are cluster-scoped, and their controller must still run to remove their finalizers.
                names = (one["metadata"]["name"] for one in source.get_all("objecttransfers"))
                source.delete("objecttransfer", *(one for one in names if one.startswith(source.namespace)), "none")
                source.delete("namespace", later.namespace, wait=False)


def transfer(
    name: str, source: Kubectl, moved: str, target: Kubectl, *, to: str = "", kind: str = "DataVolume"
) -> Document:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "ObjectTransfer",
        "metadata": {"name": f"{source.namespace}-{name}"},
        "spec": {
            "source": {"kind": kind, "namespace": source.namespace, "name": moved},
            "target": {"namespace": target.namespace, "name": to or moved},
        },
    }


def begin(kubectl: Kubectl, document: Document) -> str:
    """Create the transfer and return its name."""
    kubectl.create(document)
    return document["metadata"]["name"]


def says(phase: str, reason: str) -> Callable[[Document], bool]:
    def there(document: Document) -> bool:
        status = document.get("status", {})
        found = status.get("phase"), conditions(document).get("Complete", {}).get("reason")
        assert phase == "Error" or found[0] != "Error", status
        return found[0] == phase and reason in (found[1] or "")

    return there


def wait_says(kubectl: Kubectl, name: str, phase: str, reason: str) -> str:
    """Wait for a phase and a reason with this text, and return the message."""
    found = kubectl.wait("objecttransfer", name, f"{phase}: {reason}", says(phase, reason), TIMEOUT)
    return conditions(found)["Complete"]["message"]


def volume_of(kubectl: Kubectl, claim: str) -> Document:
    return kubectl.get("persistentvolume", kubectl.get("persistentvolumeclaim", claim)["spec"]["volumeName"])


def is_moved(cluster, source: Kubectl, moved: str, target: Kubectl, to: str, before: Document, mode: str) -> None:
    """Assert that the same volume is at the target with its content, and that source and transfer are removed."""
    claim, volume = target.get("persistentvolumeclaim", to), volume_of(target, to)
    assert claim["status"]["phase"] == "Bound"
    assert volume["metadata"]["uid"] == before["metadata"]["uid"]
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert volume["status"]["phase"] == "Bound"
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert claim["metadata"]["labels"].items() >= LABELS.items()
    assert claim["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    for kind in ("persistentvolumeclaim", "datavolume"):
        assert moved not in {one["metadata"]["name"] for one in source.get_all(kind)} or source == target
    assert digest(cluster, target, to, mode, SIZE) == sha256(DISK)


def is_left(kubectl: Kubectl, name: str, before: Document) -> None:
    """Assert that the source is unchanged."""
    claim, volume = kubectl.get("persistentvolumeclaim", name), volume_of(kubectl, name)
    assert "deletionTimestamp" not in claim["metadata"]
    assert claim["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert volume["metadata"]["uid"] == before["metadata"]["uid"]
    assert volume["spec"] == before["spec"]
    assert kubectl.get("datavolume", name)["status"]["phase"] == "Succeeded"


@pytest.mark.parametrize("moved", ["disk", "device"])
def test_a_datavolume_gets_another_namespace_and_name(cluster, places, moved):
    source, target, _ = places
    before = volume_of(source, moved)
    name = begin(source, transfer(moved, source, moved, target, to=f"moved-{moved}"))
    wait_says(source, name, "Complete", "TransferComplete")
    is_moved(cluster, source, moved, target, f"moved-{moved}", before, GOLDEN[moved])
    there = target.get("datavolume", f"moved-{moved}")
    assert there["status"]["phase"] == "Succeeded"
    assert there["metadata"]["labels"].items() >= LABELS.items()
    owners = target.get("persistentvolumeclaim", f"moved-{moved}")["metadata"]["ownerReferences"]
    assert [one["uid"] for one in owners] == [there["metadata"]["uid"]]
    reasons = [one["reason"] for one in source.within("default").events("ObjectTransfer", name)]
    assert {"TransferRunning", "TransferComplete"} <= set(reasons)
    # It is a volume like any other, deleted with its DataVolume.
    target.delete("datavolume", f"moved-{moved}")
    source.wait_gone("persistentvolume", before["metadata"]["name"], TIMEOUT)


def test_a_datavolume_gets_another_name_where_it_is(cluster, places):
    source, _, _ = places
    before = volume_of(source, "renamed")
    name = begin(source, transfer("renamed", source, "renamed", source, to="new-name"))
    wait_says(source, name, "Complete", "TransferComplete")
    assert "renamed" not in {one["metadata"]["name"] for one in source.get_all("persistentvolumeclaim")}
    is_moved(cluster, source, "renamed", source, "new-name", before, FILES)


def test_a_claim_gets_another_namespace(cluster, places):
    source, target, _ = places
    before = volume_of(source, "claim")
    name = begin(source, transfer("claim", source, "claim", target, kind="PersistentVolumeClaim"))
    wait_says(source, name, "Complete", "TransferComplete")
    is_moved(cluster, source, "claim", target, "claim", before, BLOCK)
    assert "claim" not in {one["metadata"]["name"] for one in target.get_all("datavolume")}


def test_a_source_in_use_is_waited_for(cluster, places):
    source, target, _ = places
    before = volume_of(source, "used")
    source.create(looker("holder", cluster.image, "sleep 600", "used", FILES))
    source.wait("pod", "holder", "running", lambda pod: pod["status"].get("phase") == "Running", TIMEOUT)
    name = begin(source, transfer("used", source, "used", target))
    assert "pod holder" in wait_says(source, name, "Pending", "InUse")
    is_left(source, "used", before)
    source.delete("pod", "holder")
    wait_says(source, name, "Complete", "TransferComplete")
    is_moved(cluster, source, "used", target, "used", before, FILES)


def test_a_target_that_is_taken_is_left_alone(places):
    source, target, _ = places
    before = volume_of(source, "refused")
    target.create(data_volume("refused", {"blank": {}}, "csi"))
    wait_phase(target, "refused", "Succeeded")
    theirs = volume_of(target, "refused")
    name = begin(source, transfer("refused", source, "refused", target))
    assert "already exists" in wait_says(source, name, "Error", "AlreadyExists")
    is_left(source, "refused", before)
    assert volume_of(target, "refused")["metadata"]["uid"] == theirs["metadata"]["uid"]
    source.delete("objecttransfer", name)


def test_deleted_before_the_source_is_given_up_it_is_undone_and_later_it_is_done(cluster, places):
    """Three transfers wait for a namespace; one is deleted before it exists, another when it is too late to undo."""
    source, _, later = places
    before = {name: volume_of(source, name) for name in ("waiting", "recalled", "late")}
    named = {name: begin(source, transfer(name, source, name, later)) for name in before}
    for name in named.values():
        message = wait_says(source, name, "Running", "does not exist")
        assert f"namespace {later.namespace} does not exist" in message
    source.delete("objecttransfer", named["recalled"])
    is_left(source, "recalled", before["recalled"])
    held = source.get("persistentvolumeclaim", "late")["metadata"]["finalizers"]
    source.merge("persistentvolumeclaim", "late", {"metadata": {"finalizers": [*held, "cdi.test/held"]}})
    source.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": later.namespace}})
    assert "cdi.test/held" in wait_says(source, named["late"], "Running", "InUse")
    source.delete("objecttransfer", named["late"], wait=False)
    held = source.get("persistentvolumeclaim", "late")["metadata"]["finalizers"]
    kept = [one for one in held if one != "cdi.test/held"]
    source.merge("persistentvolumeclaim", "late", {"metadata": {"finalizers": kept}})
    source.wait_gone("objecttransfer", named["late"], TIMEOUT)
    wait_says(source, named["waiting"], "Complete", "TransferComplete")
    for name in ("waiting", "late"):
        is_moved(cluster, source, name, later, name, before[name], GOLDEN[name])
        assert later.get("datavolume", name)["status"]["phase"] == "Succeeded"


def test_the_controller_is_killed_after_every_write_of_it(cluster, tmp_path):
    definitions(cluster)
    with cluster.namespace("transfer-dying") as source, cluster.namespace("transfer-dying-to") as target:
        options = ["kill_points", str(tmp_path)], f"--watch-namespaces={source.namespace},{target.namespace}"
        dying = Meddled(cluster, source.namespace, cdi_image.provide(cluster), *options)
        try:
            dying.begin()
            source.create(data_volume("disk", {"blank": {}}, "csi", mode=BLOCK))
            wait_phase(source, "disk", "Succeeded")
            before = volume_of(source, "disk")
            name = begin(source, transfer("disk", source, "disk", target))
            wait_says(source, name, "Complete", "TransferComplete")
            source.delete("objecttransfer", name)
            wait_phase(target, "disk", "Succeeded")
            volume = volume_of(target, "disk")
            assert volume["metadata"]["uid"] == before["metadata"]["uid"]
            assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
            assert not source.get_all("persistentvolumeclaims,datavolumes")
            steps = (tmp_path / "steps").read_text()
            for step in ("patch objecttransfers", "create persistentvolumeclaims disk", "delete datavolumes", "create datavolumes",
                         "patch persistentvolumes"):  # fmt: skip
                assert step in steps
        finally:
            dying.close()
