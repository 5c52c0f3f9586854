"""A golden image whose controller is killed after every write, from the first poll to the deletion of the cron."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from cdi.api.kinds import CRON_JOBS, DATA_IMPORT_CRONS, DATA_SOURCES, JOBS, SECRETS
from cdi.api.names import cron_import
from tests.cluster import cdi_image
from tests.cluster.cdi import Meddled, definitions
from tests.cluster.event_log import FOLLOWED, Chronicle, following
from tests.cluster.kubectl import Kubectl
from tests.cluster.reader import digests, pod_of_many, told
from tests.cluster.servers import secret
from tests.cluster.volumes import MIB, SLOW, conditions, disk, sha256
from tests.faults.server import FaultServer

Document = dict[str, Any]
NEXT_POLL = "cdi.kubevirt.io/storage.import.nextCronTime"
USER, PASSWORD = "golden", "image"  # noqa: S105  of the test's own server
AUTHORIZATION = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
SIZE = 4 * MIB


def golden(url: str) -> Document:
    """Build the DataImportCron, which keeps one version and takes everything with it when it is deleted."""
    storage = {
        "storageClassName": "csi",
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "24Mi"}},
    }
    source = {"http": {"url": url, "secretRef": "web"}}
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"name": "golden"},
        "spec": {
            "schedule": "0 0 1 1 *",
            "managedDataSource": "golden",
            "importsToKeep": 1,
            "retentionPolicy": "None",
            "template": {"spec": {"source": source, "storage": storage}},
        },
    }


def publish(server: FaultServer, content: bytes, *, digest: str = "") -> str:
    """Serve an image with its checksum file, and return the name of its version."""
    digest = digest or sha256(content)
    server.put("/golden/disk.raw", content, authorization=AUTHORIZATION)
    server.put("/golden/SHA256SUMS", f"{digest}  disk.raw\n".encode(), authorization=AUTHORIZATION)
    return cron_import("golden", f"sha256:{digest}")


def poll(kubectl: Kubectl) -> None:
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    kubectl.merge("dataimportcron", "golden", {"metadata": {"annotations": {NEXT_POLL: moment}}})


def offers(chronicle: Chronicle) -> list[str]:
    """Return the successive volumes in the DataSource."""
    found: list[str] = []
    for state in chronicle.states("datasources", "golden"):
        source = state["spec"].get("source") or {}
        name = source["pvc"]["name"] if "pvc" in source else ""
        if name and found[-1:] != [name]:
            found.append(name)
    return found


def state_of(chronicle: Chronicle, version: str) -> str:
    latest = (chronicle.states("dataimportcrons", "golden") or [{}])[-1]
    versions = latest.get("status", {}).get("versions") or ()
    return next((str(one["state"]) for one in versions if one["name"] == version), "")


def is_current(chronicle: Chronicle, version: str) -> bool:
    """Return whether a version is imported and offered, and the polls' objects and older volumes are deleted."""
    latest = (chronicle.states("dataimportcrons", "golden") or [{}])[-1]
    return (
        state_of(chronicle, version) == "Available"
        and conditions(latest).get("UpToDate", {}).get("status") == "True"
        and offers(chronicle)[-1:] == [version]
        and not chronicle.present("jobs")
        and set(chronicle.present("persistentvolumeclaims")) == {version}
        and set(chronicle.present("datavolumes")) == {version}
        and not chronicle.left_behind()
    )


def test_a_controller_that_dies_at_every_write_offers_each_version_once_and_leaves_nothing(cluster, tmp_path) -> None:
    definitions(cluster)
    contents = [disk(SIZE, seed=seed) for seed in (1, 2, 3)]
    followed = (*FOLLOWED, DATA_IMPORT_CRONS, DATA_SOURCES, JOBS, CRON_JOBS, SECRETS)
    with (
        FaultServer(host=cluster.host_address) as server,
        cluster.namespace("golden-kills") as kubectl,
        following(kubectl, followed) as chronicle,
    ):
        kubectl.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cdi-cronjob"}})
        kubectl.create(secret("web", accessKeyId=USER, secretKey=PASSWORD))
        dying = Meddled(cluster, kubectl.namespace, cdi_image.provide(cluster), ["kill_points", str(tmp_path)])
        try:
            first = publish(server, contents[0])
            kubectl.create(golden(server.url("/golden/disk.raw")))
            dying.begin()
            chronicle.until("the first version is current", lambda: is_current(chronicle, first), SLOW)

            bad = publish(server, contents[1], digest=sha256(b"another image"))
            poll(kubectl)
            chronicle.until("the bad one has failed", lambda: state_of(chronicle, bad) == "Failed", SLOW)
            assert offers(chronicle) == [first]

            second = publish(server, contents[2])
            poll(kubectl)
            chronicle.until("the second version is current", lambda: is_current(chronicle, second), SLOW)
            claims = {second: "Filesystem"}
            kubectl.create(pod_of_many("reader", cluster.image, digests(claims, SIZE), claims))
            assert told(kubectl, chronicle, "reader", SLOW) == {second: (sha256(contents[2]), "0")}
            kubectl.delete("pod", "reader")

            kubectl.delete("dataimportcron", "golden")
            chronicle.until("everything is deleted with the cron", lambda: not remaining(chronicle), SLOW)
            lines = dying.lines()
        finally:
            dying.close()
        deaths = [line["after"] for line in lines if line["message"] == "died"]
        unexpected = [line for line in lines if line["message"].startswith("unexpected") or "traceback" in line]
        assert not unexpected, unexpected[:2]
        assert len(deaths) > 30, "so many writes there are at the least"
        assert offers(chronicle) == [first, second]
        # Each version was imported by one DataVolume and one pod.
        assert uids(chronicle, "datavolumes") == dict.fromkeys((first, bad, second), 1)
        assert set(uids(chronicle, "pods", "importer-").values()) == {1}
        # The user's Secret stays.
        assert "web" in chronicle.present("secrets")


def remaining(chronicle: Chronicle) -> list[str]:
    """Return what exists and belongs to the cron."""
    kinds = ("dataimportcrons", "datasources", "datavolumes", "persistentvolumeclaims", "pods", "jobs", "cronjobs")
    found = [f"{kind}/{name}" for kind in kinds for name in chronicle.present(kind)]
    return found + [f"secrets/{name}" for name in chronicle.present("secrets") if "-for-" in name]


def uids(chronicle: Chronicle, kind: str, prefix: str = "") -> dict[str, int]:
    """Return how many objects there have been of each name."""
    found: dict[str, set[str]] = {}
    for state in chronicle.states(kind):
        if state["metadata"]["name"].startswith(prefix):
            found.setdefault(state["metadata"]["name"], set()).add(state["metadata"]["uid"])
    return {name: len(each) for name, each in found.items()}
