"""Records of origin in a cluster: signed by a pod, carried into the snapshot, and never a reason to offer nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdi.api.names import cron_import
from cdi.api.origin import parse_record, parse_statement
from cdi.verify.dsse import verify
from tests.cluster.cdi import controller
from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import SLOW
from tests.cluster.worker_pods import RESTRICTED
from tests.faults.server import FaultServer
from tests.integration.bundle.conftest import keys

Document = dict[str, Any]
RECORD = "cdi.kubevirt.io/golden.record"
SIZE = 4 << 20
DIGEST = f"sha256:{'a' * 64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A namespace under restricted Pod Security with a controller, and an image."""

    kubectl: Kubectl
    url: str


@pytest.fixture(scope="module")
def place(cluster) -> Iterator[Place]:
    with (
        FaultServer(host=cluster.host_address) as server,
        cluster.namespace("records") as kubectl,
        controller(cluster, kubectl),
    ):
        kubectl.run("label", "namespace", kubectl.namespace, *(f"{name}={text}" for name, text in RESTRICTED.items()))
        yield Place(kubectl=kubectl, url=server.put("/os.raw", b"x".ljust(SIZE, b"\0")))


def offer(place: Place, name: str, **annotations: str) -> str:
    """Import a version, wait until it is offered, and return its name."""
    desired = {"storage.import.sourceDesiredDigest": DIGEST, **annotations}
    storage = {
        "resources": {"requests": {"storage": "24Mi"}},
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "storageClassName": "csi",
    }
    place.kubectl.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataImportCron",
            "metadata": {
                "name": name,
                "annotations": {f"cdi.kubevirt.io/{key}": text for key, text in desired.items()},
            },
            "spec": {
                "schedule": "",
                "managedDataSource": name,
                "template": {"spec": {"source": {"http": {"url": f"{place.url}?token=secret"}}, "storage": storage}},
            },
        }
    )
    version = cron_import(name, DIGEST)

    def there(document: Document) -> bool:
        return any(body.get("name") == version for body in (document["spec"].get("source") or {}).values())

    place.kubectl.wait("datasource", name, f"offers {version}", there, SLOW)
    return version


def record_of(place: Place, version: str) -> str:
    """Return the record on the PVC, or on the VolumeSnapshot that replaced it."""

    def recorded(document: Document) -> bool:
        return RECORD in (document["metadata"].get("annotations") or {})

    body = place.kubectl.wait("pvc", version, "recorded", recorded, SLOW)
    text: str = body["metadata"]["annotations"][RECORD]
    return text


def test_a_version_is_offered_with_the_record_that_a_pod_signed(place, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    place.kubectl.run("create", "secret", "generic", "signer", f"--from-file=key.pem={private}")
    version = offer(place, "signed", **{"golden.recordKey": "signer"})
    # It is there with the offer, not later.
    envelope = parse_record(place.kubectl.get("pvc", version)["metadata"]["annotations"][RECORD])
    assert verify(envelope, public.read_bytes(), where=version)
    statement = parse_statement(envelope.payload)
    assert statement["subject"][0] == {"name": version, "digest": {"sha256": "a" * 64}}
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["source"] == place.url
    assert b"secret" not in envelope.payload
    place.kubectl.wait_gone("pod", f"sign-record-{version}", SLOW)


def test_without_a_key_the_record_is_plain(place) -> None:
    envelope = parse_record(record_of(place, offer(place, "plain")))
    assert envelope.signatures == ()
    assert parse_statement(envelope.payload)["predicateType"] == "https://slsa.dev/provenance/v1"


def test_an_unusable_key_is_reported_and_the_version_is_offered(place, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    place.kubectl.run("create", "secret", "generic", "broken", f"--from-file={tmp_path}/key.pem")
    version = offer(place, "broken", **{"golden.recordKey": "broken"})
    assert parse_record(record_of(place, version)).signatures == ()
    events = {event["reason"]: event["message"] for event in place.kubectl.events("DataImportCron", "broken")}
    assert "not a private key in PEM" in events["RecordNotSigned"]
