from __future__ import annotations

import pytest

from cdi.api.names import GROUP
from cdi.reconcile.datavolume.annotated_claims import data_volume_for_claim
from cdi.reconcile.types import PVC
from tests.unit.reconcile.cluster_simulation import Cluster, dv

IMPORT = f"{GROUP}/storage.import."


def made(**annotations):
    claim = PVC(
        namespace="default", name="a", uid="u", phase="Pending", requested=1 << 30, storage_class="csi",
        annotations={f"{GROUP}/{name}": text for name, text in annotations.items()},
    )  # fmt: skip
    return data_volume_for_claim(claim, Cluster(dv("csi")))


def annotated(**fields):
    return made(**{f"storage.import.{name.replace('__', '.')}": text for name, text in fields.items()})


def test_an_http_source_with_everything():
    source = annotated(
        source="http",
        endpoint="https://server/x",
        secretName="login",
        certConfigMap="ca",
        checksum="sha256:" + "0" * 64,
        insecureSkipVerify="true",
        extraHeaders__1="B: 2",
        extraHeaders__0="A: 1",
        extraHeaders__10="C: 3",
        secretExtraHeaders__0="token",
    ).spec.source.http
    assert source.url == "https://server/x"
    assert (source.secret_ref, source.cert_config_map) == ("login", "ca")
    assert source.extra_headers == ["A: 1", "B: 2", "C: 3"]
    assert source.secret_extra_headers == ["token"]
    assert source.insecure_skip_verify is True
    assert source.checksum.startswith("sha256:")


@pytest.mark.parametrize("kind", ["glance", "http", "", "unheard-of"])
def test_what_is_read_as_http(kind):
    assert annotated(source=kind, endpoint="http://server/x").spec.source.http.url == "http://server/x"


def test_an_endpoint_alone_is_http():
    assert annotated(endpoint="http://server/x").spec.source.http is not None


def test_none_is_an_empty_disk():
    assert annotated(source="none").spec.source.blank is not None


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_buckets(kind):
    source = getattr(annotated(source=kind, endpoint=f"{kind}://b/k", secretName="login").spec.source, kind)
    assert (source.url, source.secret_ref) == (f"{kind}://b/k", "login")


def test_registries():
    source = annotated(
        source="registry", endpoint="docker://r/i", registryImportMethod="pod", registryImageArchitecture="arm64"
    ).spec.source.registry
    assert (source.url, source.pull_method, source.platform.architecture) == ("docker://r/i", "pod", "arm64")


@pytest.mark.parametrize("kind", ["imageio", "vddk"])
def test_what_cannot_be_read_is_still_told_apart(kind):
    assert getattr(annotated(source=kind, endpoint="https://server").spec.source, kind) is not None


def test_the_rest_of_what_a_claim_asks_for():
    spec = made(
        **{
            "storage.import.endpoint": "http://server/x",
            "storage.contentType": "archive",
            "storage.preallocation.requested": "true",
            "storage.pod.priorityclassname": "gold",
            "storage.pod.serviceAccountName": "puller",
        }
    ).spec
    assert (spec.content_type, spec.preallocation) == ("archive", True)
    assert (spec.priority_class_name, spec.service_account_name) == ("gold", "puller")
    assert spec.pvc.size.bytes == 1 << 30


@pytest.mark.parametrize("status", ["", "{", "[]", '{"phase": 3}', "[" * 5000, '{"conditions": [{"type": 1}]}'])
def test_a_status_that_somebody_altered_is_written_anew(status):
    made_of = made(**{"storage.import.endpoint": "http://server/x", "storage.import.status": status})
    assert made_of.status is None


def test_a_claim_that_asks_for_nothing():
    assert made() is None
