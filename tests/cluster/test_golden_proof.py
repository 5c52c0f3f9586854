"""Boot proofs of golden images: the pod on volumes of both modes, and what a DataImportCron offers.

The guests are boot sectors that print a login prompt or a panic, so that a proof takes seconds under emulation too;
tests/integration/test_prove.py boots a Debian.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cdi.api.dataimportcron import DataImportCron, GoldenVersion, VersionState
from cdi.api.golden import GoldenSettings
from cdi.api.names import cron_import, proof_pod
from cdi.reconcile.actions import CreateObject
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.proof import ProofStep, plan_proof
from cdi.reconcile.dataimportcron.proof_pod import KVM
from cdi.reconcile.settings import Platform, ResolvedConfig, WorkerPodConfig
from cdi.reconcile.types import PVC
from tests.cluster.cdi import controller
from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import is_phase
from tests.cluster.volumes import SLOW, data_volume, wait_phase
from tests.cluster.worker_pods import RESTRICTED
from tests.faults.server import FaultServer
from tests.integration.test_boot import HALT, boot_sector

Document = dict[str, Any]
SIZE = 4 << 20
GUESTS = {
    "boots": boot_sector(b"\r\ngolden login: ", HALT),
    "panics": boot_sector(b"[ 1.0] Kernel panic - not syncing: VFS: no root\r\n", HALT),
    "empty": b"",
}


def disk_of(first: bytes) -> bytes:
    return first.ljust(SIZE - 1, b"\0") + b"x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A namespace under restricted Pod Security with a controller and one imported volume of each guest and mode."""

    kubectl: Kubectl
    image: str
    server: FaultServer

    def claim(self, name: str) -> PVC:
        body = self.kubectl.get("pvc", name)
        metadata = body["metadata"]
        return PVC(
            namespace=metadata["namespace"],
            name=name,
            uid=metadata["uid"],
            phase="Bound",
            volume_mode=body["spec"]["volumeMode"],
        )


@pytest.fixture(scope="module")
def place(cluster, cdi_image) -> Iterator[Place]:
    with (
        FaultServer(host=cluster.host_address) as server,
        cluster.namespace("proof") as kubectl,
        controller(cluster, kubectl),
    ):
        kubectl.run("label", "namespace", kubectl.namespace, *(f"{name}={text}" for name, text in RESTRICTED.items()))
        names = []
        for guest, first in GUESTS.items():
            source = {"http": {"url": server.put(f"/{guest}.raw", disk_of(first))}}
            for mode in ("Filesystem", "Block"):
                names.append(f"{guest}-{mode.lower()}")
                kubectl.create(data_volume(names[-1], source, "csi", mode=mode))
        for name in names:
            wait_phase(kubectl, name, "Succeeded")
        yield Place(kubectl=kubectl, image=cdi_image, server=server)


# --- the pod --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The part of the cluster that a plan of a proof reads."""

    pods: dict[str, Document]

    def pod(self, _namespace: str, name: str) -> Document | None:
        return self.pods.get(name)

    def running_proofs(self) -> dict[str, int]:
        return {}

    def waiting_proofs(self, _now: float) -> dict[str, int]:
        return {}

    def offers_device(self, _resource: str) -> bool:
        return False


def planned(place: Place, claim: PVC, pods: dict[str, Document]) -> ProofStep:
    cron = DataImportCron.model_validate(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataImportCron",
            "metadata": {"name": "golden", "namespace": claim.namespace, "uid": "cron"},
            "spec": {
                "schedule": "",
                "managedDataSource": "golden",
                "template": {"spec": {"source": {"registry": {"url": "docker://r/golden"}}}},
            },
        }
    )
    context = CronContext(
        now=0.0,
        cron=cron,
        objects=Observed(pods=pods),  # type: ignore[arg-type]  # a plan of a proof calls nothing else
        settings=GoldenSettings(proof="boot", proof_memory=64 << 20),
        config=ResolvedConfig(pods=WorkerPodConfig(image=place.image)),
        platform=Platform(cluster=True),
    )
    version = GoldenVersion(name=claim.name, digest=f"uid:{claim.uid}", state=VersionState.PROVING)
    return plan_proof(context, version, claim)


@pytest.mark.parametrize("mode", ["filesystem", "block"])
@pytest.mark.parametrize(
    ("guest", "booted", "message"),
    [
        ("boots", True, "a login prompt"),
        ("panics", False, "the kernel panicked"),
        ("empty", False, "No bootable device"),
    ],
)
def test_a_pod_proves_a_volume_that_it_only_reads(place, guest, mode, booted, message) -> None:
    claim = place.claim(f"{guest}-{mode}")
    (action,) = planned(place, claim, {}).actions
    assert isinstance(action, CreateObject)
    place.kubectl.create(dict(action.body))
    name = proof_pod(claim.uid, claim.name)
    document = place.kubectl.wait("pod", name, "at its end", is_phase("Succeeded", "Failed"), SLOW)
    step = planned(place, claim, {name: document})
    assert step.result is not None, (step, place.kubectl.logs(name))
    assert step.result.booted is booted, place.kubectl.logs(name)
    assert message in (step.result.message or "")
    assert step.result.accelerator == "tcg"
    assert document["status"]["phase"] == ("Succeeded" if booted else "Failed")


# --- the version ------------------------------------------------------------------------------------------------------


class Golden:
    """A DataImportCron whose source is changed, and whose wanted digest is set, by the test."""

    def __init__(self, place: Place, name: str, **annotations: str) -> None:
        self._place, self.name = place, name
        golden = {"golden.proof": "boot", "golden.proofMemory": "64Mi", **annotations}
        storage = {
            "resources": {"requests": {"storage": "24Mi"}},
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Filesystem",
            "storageClassName": "csi",
        }
        url = place.server.put(f"/{name}.raw", disk_of(b""))
        place.kubectl.create(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "DataImportCron",
                "metadata": {
                    "name": name,
                    "annotations": {f"cdi.kubevirt.io/{key}": text for key, text in golden.items()},
                },
                "spec": {
                    "schedule": "",
                    "managedDataSource": name,
                    "template": {"spec": {"source": {"http": {"url": url}}, "storage": storage}},
                },
            }
        )

    def publish(self, guest: str, digit: str) -> str:
        """Make a guest the content of the source, want it as a new version, and return the version's name."""
        self._place.server.put(f"/{self.name}.raw", disk_of(GUESTS[guest]))
        digest = f"sha256:{digit * 64}"
        desired = {"cdi.kubevirt.io/storage.import.sourceDesiredDigest": digest}
        self._place.kubectl.merge("dataimportcron", self.name, {"metadata": {"annotations": desired}})
        return cron_import(self.name, digest)

    def wait_version(self, version: str, state: str) -> Document:
        """Return the version once it is in this state."""

        def found(document: Document) -> Document:
            versions = document.get("status", {}).get("versions") or []
            return next((one for one in versions if one["name"] == version), {})

        def there(document: Document) -> bool:
            return found(document).get("state") == state

        return found(self._place.kubectl.wait("dataimportcron", self.name, f"{version} {state}", there, SLOW))

    def wait_offer(self, version: str) -> None:
        def there(document: Document) -> bool:
            return document["spec"].get("source", {}).get("pvc", {}).get("name") == version

        self._place.kubectl.wait("datasource", self.name, f"offers {version}", there, SLOW)

    @property
    def offered(self) -> str:
        source: Document = self._place.kubectl.get("datasource", self.name)["spec"]["source"]
        name: str = source["pvc"]["name"]
        return name


def test_only_versions_that_boot_are_offered(place) -> None:
    golden = Golden(place, "debian")
    first = golden.publish("boots", "a")
    golden.wait_offer(first)
    version = golden.wait_version(first, "Available")
    assert version["proof"]["booted"] is True
    assert version["proof"]["accelerator"] == "tcg"
    bad = golden.publish("panics", "b")
    version = golden.wait_version(bad, "Unproven")
    assert version["reason"] == "BootFailed"
    assert "VFS: no root" in version["message"]
    assert golden.offered == first
    body = place.kubectl.get("dataimportcron", "debian")
    up_to_date = next(one for one in body["status"]["conditions"] if one["type"] == "UpToDate")
    assert (up_to_date["status"], up_to_date["reason"]) == ("False", "Unproven")
    assert "VFS: no root" in up_to_date["message"]
    reasons = {event["reason"]: event["message"] for event in place.kubectl.events("DataImportCron", "debian")}
    assert bad in reasons["BootFailed"]
    assert first in reasons["BootProven"]
    good = golden.publish("boots", "c")
    golden.wait_offer(good)
    for name in (first, bad, good):
        claim = place.claim(name)
        place.kubectl.wait_gone("pod", proof_pod(claim.uid, name), SLOW)


def test_kvm_is_requested_where_a_node_offers_it(place) -> None:
    """The node offers the resource of KubeVirt's device plugin; without a device behind it the guest is emulated."""
    # Tests that run at the same time boot their images in the meantime, and request one each.
    devices = "10"
    kvm = "devices.kubevirt.io~1kvm"
    node = place.kubectl.get_all("node")[0]["metadata"]["name"]

    def patch(*operations: Document) -> None:
        place.kubectl.run(
            "patch", "node", node, "--subresource=status", "--type=json", f"--patch={json.dumps(operations)}"
        )

    patch({"op": "add", "path": f"/status/capacity/{kvm}", "value": devices})
    try:
        golden = Golden(place, "fedora", **{"storage.pod.retainAfterCompletion": "true"})
        place.kubectl.wait("node", node, "kvm", lambda body: devices == body["status"]["allocatable"].get(KVM), SLOW)
        version = golden.publish("boots", "d")
        golden.wait_offer(version)
        pod = place.kubectl.get("pod", proof_pod(place.claim(version).uid, version))
        assert pod["spec"]["containers"][0]["resources"]["limits"][KVM] == "1"
        assert pod["spec"]["containers"][0]["resources"]["requests"][KVM] == "1"
    finally:
        patch(*({"op": "remove", "path": f"/status/{part}/{kvm}"} for part in ("capacity", "allocatable")))
