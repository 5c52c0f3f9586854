"""Golden images that must be signed, on a cluster: an unsigned version is not offered, and is imported once signed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdi.api.policy import COSIGN_KEYS
from tests.cluster.cdi import controller
from tests.cluster.kubectl import Kubectl
from tests.cluster.servers import Servers, secret, serving
from tests.cluster.volumes import MIB, SLOW, conditions, data_volume, disk, wait_phase
from tests.integration.fixtures_cosign import Cosign

Document = dict[str, Any]
NEXT_POLL = "cdi.kubevirt.io/storage.import.nextCronTime"
LONG_AGO = "2020-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A namespace with a controller, a registry, and a Secret ``signers`` with one public key."""

    kubectl: Kubectl
    servers: Servers
    cosign: Cosign

    def push(self, name: str, seed: int) -> Document:
        return self.servers.push_disk(name, disk(8 * MIB, seed=seed))

    def sign(self, name: str, key: str = "release") -> None:
        """Sign what the tag ``latest`` names now."""
        layout = self.servers.directory / f"layout-{name}" / "index.json"
        digest = json.loads(layout.read_text())["manifests"][-1]["digest"]
        self.cosign.sign(f"docker://{self.servers.push_to}/{name}", digest, key, "bundle")

    def wait_refused(self, name: str, words: str) -> None:
        """Wait until the condition of the DataVolume has these words."""

        def refused(document: Document) -> bool:
            return any(words in condition.get("message", "") for condition in conditions(document).values())

        self.kubectl.wait("datavolume", name, f"says {words}", refused, SLOW)

    def poll(self, cron: str) -> None:
        self.kubectl.merge("dataimportcron", cron, {"metadata": {"annotations": {NEXT_POLL: LONG_AGO}}})

    def wait_import(self, cron: str, *, other_than: str = "") -> str:
        """Return the name of the newest version once it is known."""

        def known(document: Document) -> bool:
            imports = document.get("status", {}).get("currentImports") or []
            return bool(imports and imports[0]["DataVolumeName"] != other_than)

        found = self.kubectl.wait("dataimportcron", cron, "has another version", known, SLOW)
        return str(found["status"]["currentImports"][0]["DataVolumeName"])

    def offered(self, name: str) -> str | None:
        """Return the name of the PVC that a DataSource offers, if it is ready."""
        document = self.kubectl.get("datasource", name)
        ready = conditions(document).get("Ready", {}).get("status") == "True"
        return str(document["spec"]["source"]["pvc"]["name"]) if ready else None

    def wait_offered(self, name: str, version: str) -> None:
        def ready(document: Document) -> bool:
            pvc = document["spec"]["source"].get("pvc") or {}
            return conditions(document).get("Ready", {}).get("status") == "True" and pvc.get("name") == version

        self.kubectl.wait("datasource", name, f"offers {version}", ready, SLOW)


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory: pytest.TempPathFactory, cosign: Cosign) -> Iterator[Place]:
    with (
        cluster.namespace("signed") as kubectl,
        serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as servers,
        controller(cluster, kubectl),
    ):
        key: Path = cosign.key("release")
        kubectl.create(
            *servers.inputs(),
            secret("signers", **{"release.pub": key.read_text()}),
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cdi-cronjob"}},
        )
        yield Place(kubectl=kubectl, servers=servers, cosign=cosign)


def required(name: str, source: Document) -> Document:
    return data_volume(name, source, "csi", annotations={COSIGN_KEYS: "signers"})


def test_an_unsigned_image_is_imported_once_it_is_signed(place) -> None:
    place.kubectl.create(required("late", place.push("late", 1)))
    place.wait_refused("late", "the image has no cosign signature")
    place.sign("late")
    wait_phase(place.kubectl, "late", "Succeeded")
    assert "cosign (release.pub)" in json.dumps(place.kubectl.get("pvc", "late")["metadata"]["annotations"])


def test_an_image_signed_by_another_key_fails(place) -> None:
    source = place.push("foreign", 2)
    place.sign("foreign", "stranger")
    place.kubectl.create(required("foreign", source))
    place.wait_refused("foreign", "no signature by a trusted key (release.pub)")


def test_a_cron_keeps_offering_the_signed_version(place) -> None:
    source = place.push("golden", 3)
    place.sign("golden")
    storage = {
        "storageClassName": "csi", "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "24Mi"}},
    }  # fmt: skip
    place.kubectl.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataImportCron",
            "metadata": {"name": "golden-cron", "annotations": {COSIGN_KEYS: "signers"}},
            "spec": {
                "schedule": "0 0 1 1 *",
                "managedDataSource": "golden",
                "template": {"spec": {"source": source, "storage": storage}},
            },
        }
    )
    first = place.wait_import("golden-cron")
    place.wait_offered("golden", first)
    assert place.kubectl.get("datavolume", first)["metadata"]["annotations"][COSIGN_KEYS] == "signers"

    place.push("golden", 4)
    place.poll("golden-cron")
    second = place.wait_import("golden-cron", other_than=first)
    place.wait_refused(second, "the image has no cosign signature")
    assert place.offered("golden") == first

    place.sign("golden")
    place.wait_offered("golden", second)
