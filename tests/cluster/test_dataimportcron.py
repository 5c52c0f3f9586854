"""DataImportCrons on a cluster: polled at once, imported, offered, updated, kept as snapshots and deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from cdi.api.annotations import GOLDEN_ORIGIN
from tests.cluster.cdi import Controller, controller
from tests.cluster.kubectl import Kubectl
from tests.cluster.servers import Servers, serving
from tests.cluster.volumes import MIB, SLOW, conditions, data_volume, disk, wait_phase

Document = dict[str, Any]
CRON_LABEL = "cdi.kubevirt.io/dataImportCron"
NEXT_POLL = "cdi.kubevirt.io/storage.import.nextCronTime"
NEVER = "0 0 1 1 *"
SIZE = 8 * MIB
UP_TO_DATE = "Latest import is up to date"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A namespace with a controller and servers."""

    kubectl: Kubectl
    servers: Servers
    controller: Controller

    def push(self, name: str, seed: int) -> Document:
        """Push a disk to the tag ``latest`` of a repository and return the source."""
        return self.servers.push_disk(name, disk(SIZE, seed=seed))

    def poll(self, cron: str) -> None:
        """Poll by hand, in the documented way."""
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.kubectl.merge("dataimportcron", cron, {"metadata": {"annotations": {NEXT_POLL: moment}}})

    def wait_current(self, cron: str, *, other_than: str = "") -> str:
        """Return the name of the newest version once it is up to date."""

        def current(document: Document) -> bool:
            imports = document.get("status", {}).get("currentImports") or []
            told = conditions(document).get("UpToDate", {})
            return bool(imports and imports[0]["DataVolumeName"] != other_than and told.get("message") == UP_TO_DATE)

        found = self.kubectl.wait("dataimportcron", cron, "up to date", current, SLOW)
        return str(found["status"]["currentImports"][0]["DataVolumeName"])

    def wait_offered(self, data_source: str, form: str, name: str) -> None:
        place = {"namespace": self.kubectl.namespace, "name": name}

        def offered(document: Document) -> bool:
            ready = conditions(document).get("Ready", {}).get("status") == "True"
            return ready and document["spec"]["source"] == {form: place}

        self.kubectl.wait("datasource", data_source, f"offers {form} {name}", offered, SLOW)

    def wait_gone(self, kind: str, name: str) -> None:
        self.kubectl.run("wait", kind, name, "--for=delete", "--timeout=240s", patience=300)


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory) -> Iterator[Place]:
    with (
        cluster.namespace("golden") as kubectl,
        serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as servers,
        controller(cluster, kubectl) as running,
    ):
        kubectl.create(*servers.inputs())
        kubectl.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cdi-cronjob"}})
        yield Place(kubectl=kubectl, servers=servers, controller=running)


def cron(name: str, source: Document, *, storage_class: str = "csi", **spec: Any) -> Document:
    storage = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "24Mi"}},
    }
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"name": f"{name}-cron", "labels": {"instancetype.kubevirt.io/default-preference": "fedora"}},
        "spec": {
            "schedule": NEVER,
            "managedDataSource": name,
            "template": {"spec": {"source": source, "storage": storage}},
            **spec,
        },
    }


def test_an_image_is_polled_at_once_imported_offered_and_cloned(place) -> None:
    kubectl = place.kubectl
    kubectl.create(cron("first", place.push("first", 1)))
    version = place.wait_current("first-cron")
    place.wait_offered("first", "pvc", version)
    stored = kubectl.get("dataimportcron", "first-cron")
    digest = stored["status"]["currentImports"][0]["Digest"]
    assert version == f"first-{digest.removeprefix('sha256:')[:12]}"
    assert stored["status"]["lastImportedPVC"] == {"namespace": kubectl.namespace, "name": version}
    assert stored["status"]["lastExecutionTimestamp"]
    assert (
        kubectl.get("datasource", "first")["metadata"]["labels"]["instancetype.kubevirt.io/default-preference"]
        == "fedora"
    )
    assert kubectl.get("datavolume", version)["spec"]["source"]["registry"]["url"].endswith(f"@{digest}")

    clone = data_volume("machine", {}, "csi", size="64Mi")
    del clone["spec"]["source"]
    clone["spec"]["sourceRef"] = {"kind": "DataSource", "name": "first"}
    kubectl.create(clone)
    wait_phase(kubectl, "machine", "Succeeded")
    claim = kubectl.get("pvc", "machine")["metadata"]
    assert json.loads(claim["annotations"][GOLDEN_ORIGIN.key])["version"] == version
    assert CRON_LABEL not in claim.get("labels", {})


def test_a_new_image_is_offered_after_a_poll_by_hand_and_a_restart(place) -> None:
    kubectl = place.kubectl
    kubectl.create(cron("second", place.push("second", 2)))
    before = place.wait_current("second-cron")
    place.wait_offered("second", "pvc", before)
    place.push("second", 3)
    place.controller.kill()
    place.poll("second-cron")
    place.controller.start()
    after = place.wait_current("second-cron", other_than=before)
    place.wait_offered("second", "pvc", after)
    # The older one stays, as three imports are kept.
    assert kubectl.get("pvc", before)["status"]["phase"] == "Bound"
    states = {one["name"]: one["state"] for one in kubectl.get("dataimportcron", "second-cron")["status"]["versions"]}
    assert states == {before: "Available", after: "Available"}


def test_a_bad_image_is_named_and_the_good_one_stays_offered(place) -> None:
    kubectl = place.kubectl
    kubectl.create(cron("third", place.push("third", 4)))
    good = place.wait_current("third-cron")
    place.wait_offered("third", "pvc", good)
    place.servers.push_disk("third", disk(64 * MIB, seed=5))  # larger than the volume
    place.poll("third-cron")

    def named(document: Document) -> bool:
        return document.get("status", {}).get("versions", [{}])[0].get("state") == "Failed"

    found = kubectl.wait("dataimportcron", "third-cron", "names the bad version", named, SLOW)
    assert found["status"]["versions"][0]["message"]
    place.wait_offered("third", "pvc", good)
    assert "ImportFailed" in {each["reason"] for each in kubectl.events("DataImportCron", "third-cron")}


def test_a_failing_poll_is_reported_and_keeps_what_is_offered(place) -> None:
    kubectl = place.kubectl
    kubectl.create(cron("fourth", place.push("fourth", 6)))
    version = place.wait_current("fourth-cron")
    place.wait_offered("fourth", "pvc", version)
    kubectl.merge("secret", "registry", {"data": {"secretKey": "d3Jvbmc="}})
    try:
        place.poll("fourth-cron")
        found = kubectl.wait(
            "dataimportcron", "fourth-cron", "reports the failed poll",
            lambda it: conditions(it).get("Polled", {}).get("status") == "False", SLOW,
        )  # fmt: skip
        assert conditions(found)["UpToDate"]["message"] == UP_TO_DATE
        place.wait_offered("fourth", "pvc", version)
    finally:
        kubectl.apply(*place.servers.inputs())


def test_versions_are_kept_as_snapshots(place) -> None:
    kubectl = place.kubectl
    name = f"{kubectl.namespace}-snapshots"
    template = kubectl.get("storageclass", "csi")
    kubectl.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": template["provisioner"],
            "parameters": template.get("parameters") or {},
            "volumeBindingMode": "Immediate",
        },
        {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile", "metadata": {"name": name}, "spec": {}},
    )
    try:
        status = json.dumps({"status": {"dataImportCronSourceFormat": "snapshot"}})
        kubectl.run("patch", "storageprofile", name, "--subresource=status", "--type=merge", f"--patch={status}")
        kubectl.create(cron("fifth", place.push("fifth", 7), storage_class=name))
        version = place.wait_current("fifth-cron")
        place.wait_offered("fifth", "snapshot", version)
        place.wait_gone("pvc", version)
        clone = data_volume("restored", {}, "csi", size="64Mi")
        del clone["spec"]["source"]
        clone["spec"]["sourceRef"] = {"kind": "DataSource", "name": "fifth"}
        kubectl.create(clone)
        wait_phase(kubectl, "restored", "Succeeded")
    finally:
        kubectl.delete("dataimportcron", "fifth-cron")
        kubectl.run("delete", "storageprofile,storageclass", name, "--ignore-not-found")


def test_with_retention_none_everything_is_deleted_with_the_cron(place) -> None:
    kubectl = place.kubectl
    kubectl.create(cron("sixth", place.push("sixth", 8), retentionPolicy="None"))
    version = place.wait_current("sixth-cron")
    place.wait_offered("sixth", "pvc", version)
    kubectl.delete("dataimportcron", "sixth-cron")
    for kind in ("datasource", "datavolume", "pvc", "job", "cronjob"):
        selector = f"--selector={CRON_LABEL}=sixth-cron"
        kubectl.run("wait", kind, "--for=delete", selector, "--timeout=240s", patience=300)
        assert kubectl.get_all(kind, f"{CRON_LABEL}=sixth-cron") == []
