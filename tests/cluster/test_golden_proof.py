"""Boot proofs of golden images: the pod on volumes of both modes, and what a DataImportCron offers.

The guests are boot sectors that print a login prompt or a panic, so that a proof takes seconds under emulation too;
tests/integration/test_prove.py boots a Debian.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cdi.api.dataimportcron import DataImportCron, GoldenVersion, VersionState
from cdi.api.golden import GoldenSettings
from cdi.api.names import proof_pod
from cdi.reconcile.actions import CreateObject
from cdi.reconcile.context import PVC, ResolvedConfig, WorkerPodConfig
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.proof import ProofStep, plan_proof
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A namespace under restricted Pod Security with a controller and one imported volume of each guest and mode."""

    kubectl: Kubectl
    image: str

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
            content = first.ljust(SIZE - 1, b"\0") + b"x"
            source = {"http": {"url": server.put(f"/{guest}.raw", content)}}
            for mode in ("Filesystem", "Block"):
                names.append(f"{guest}-{mode.lower()}")
                kubectl.create(data_volume(names[-1], source, "csi", mode=mode))
        for name in names:
            wait_phase(kubectl, name, "Succeeded")
        yield Place(kubectl=kubectl, image=cdi_image)


# --- the pod --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The part of the cluster that a plan of a proof reads."""

    pods: dict[str, Document]

    def pod(self, _namespace: str, name: str) -> Document | None:
        return self.pods.get(name)

    def active_proofs(self) -> int:
        return 0

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
