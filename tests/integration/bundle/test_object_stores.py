"""Tests of bundles of golden images from S3 and GCS, fetched again from where they were imported."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes.gcs_json_api import GcsStandin
from tests.integration.bundle.conftest import GUEST
from tests.integration.fixtures_s3 import ACCESS_KEY, SECRET_KEY, S3Server

OBJECT = "os/guest.qcow2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A private object, and how a DataImportCron reads it."""

    server: Any
    source: dict[str, Any]
    """``spec.source`` with a Secret ``access``."""
    secret: dict[str, str]
    annotations: dict[str, str]

    def put(self, content: bytes) -> None:
        if isinstance(self.server, S3Server):
            self.server.put(OBJECT, content)
        else:
            self.server.put("images", OBJECT, content, public=False, readers=frozenset(self.server.accounts))

    def remove(self) -> None:
        if isinstance(self.server, S3Server):
            self.server.client.delete_object(Bucket=self.server.bucket, Key=OBJECT)
        else:
            del self.server.objects["images", OBJECT]

    def manifests(self) -> str:
        data = {name: base64.b64encode(text.encode()).decode() for name, text in self.secret.items()}
        cron = {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataImportCron",
            "metadata": {"name": "os", "annotations": self.annotations},
            "spec": {
                "schedule": "@yearly",
                "managedDataSource": "os",
                "template": {
                    "spec": {"source": self.source, "storage": {"resources": {"requests": {"storage": "12Mi"}}}}
                },
            },
        }
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "access"}, "data": data}
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": [secret, cron]})


def s3_bucket(server: S3Server, *, url: str, annotations: dict[str, str]) -> Bucket:
    secret = {"accessKeyId": ACCESS_KEY, "secretKey": SECRET_KEY}
    return Bucket(
        server=server, source={"s3": {"url": url, "secretRef": "access"}}, secret=secret, annotations=annotations
    )


def gcs_bucket(standin: GcsStandin, *, url: str, annotations: dict[str, str]) -> Bucket:
    account = standin.accounts.get("importer@test.iam.gserviceaccount.com") or standin.account()
    secret = {"credentials.json": json.dumps(account.info(standin.token_uri))}
    return Bucket(
        server=standin, source={"gcs": {"url": url, "secretRef": "access"}}, secret=secret, annotations=annotations
    )


@pytest.fixture(params=["s3-endpoint", "s3-url", "gcs-endpoint", "gcs-url"])
def golden(request, cdi, s3, gcs_standin, qcow2) -> Bucket:
    """A golden image whose service is named by an annotation, or by the URL as KubeVirt's users write it."""
    endpoint = "cdi.kubevirt.io/policy.endpoint"
    match request.param:
        case "s3-endpoint":
            bucket = s3_bucket(s3, url=f"s3://{s3.bucket}/{OBJECT}", annotations={endpoint: s3.endpoint})
        case "s3-url":
            bucket = s3_bucket(s3, url=s3.url(OBJECT), annotations={})
        case "gcs-endpoint":
            bucket = gcs_bucket(gcs_standin, url=f"gs://images/{OBJECT}", annotations={endpoint: gcs_standin.origin})
        case _:
            bucket = gcs_bucket(gcs_standin, url=f"{gcs_standin.origin}/images/{OBJECT}", annotations={})
    bucket.put(qcow2.read_bytes())
    cdi("apply", "-f", "-", input=bucket.manifests())
    cdi("golden", "poll", "os")
    cdi("golden", "wait", "os")
    return bucket


@pytest.mark.root
def test_the_version_is_fetched_again_and_imported_without_a_network(golden, cdi, elsewhere, tmp_path):
    bundle = tmp_path / "golden.tar"
    assert "os: sha256:" in cdi("bundle", "create", "-o", bundle, "--from", "source", "os").stdout
    elsewhere("bundle", "import", bundle)
    (claim,) = json.loads(elsewhere("get", "pvc", "-o", "json").stdout)["items"]
    assert elsewhere.disk(claim["metadata"]["name"]).read_bytes() == GUEST


@pytest.mark.parametrize("golden", ["s3-endpoint", "gcs-url"], indirect=True)
def test_another_version_in_its_place_is_not_bundled(golden, cdi, qcow2, tmp_path):
    def refused() -> None:
        done = cdi("bundle", "create", "-o", tmp_path / "golden.tar", "--from", "source", "os", status=3)
        assert "error[VersionGone]: the source no longer serves version" in done.stderr
        assert not (tmp_path / "golden.tar").exists()

    golden.put(qcow2.read_bytes() + bytes(512))
    refused()
    golden.remove()
    refused()
