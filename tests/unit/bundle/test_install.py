"""Tests of the objects that an import from a bundle writes, and of which records count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cdi.api.dataimportcron import GoldenVersion
from cdi.api.digest import Digest
from cdi.api.errors import AlreadyExists, BundleInvalid, Conflict, NotFound, SignatureInvalid, SignatureMissing
from cdi.api.origin import Envelope, ImportFacts, build_statement
from cdi.bundle.contents import BundledImage, GoldenDocument, bundle_statement, verify_records
from cdi.bundle.install import (
    Checked,
    data_volume,
    find_earlier,
    is_uploaded,
    offer,
    request_of,
    require_free,
    upload_volume,
)
from cdi.cli.bundle import _upload
from cdi.client.backend import Applied
from cdi.source.registry.platform import Platform
from cdi.source.registry.resolve import ResolvedImage
from cdi.verify.dsse import sign
from tests.integration.bundle.conftest import keys

DIGEST = f"sha256:{'a1' * 32}"
CRON = {
    "apiVersion": "cdi.kubevirt.io/v1beta1",
    "kind": "DataImportCron",
    "metadata": {
        "name": "fedora",
        "namespace": "kube-system",
        "finalizers": ["x"],
        "annotations": {"cdi.kubevirt.io/golden.proof": "boot", "other": "x"},
    },
    "spec": {"schedule": "* * * * *", "managedDataSource": "fedora"},
}


def checked(**fields) -> Checked:
    version = GoldenVersion(name="x", digest=DIGEST, state="Available", architecture="arm64")
    document = GoldenDocument(name="fedora", version=version, original=True, **fields)
    image = BundledImage(name="fedora", document=document, digest=Digest.parse(DIGEST), record='{"record":1}')
    resolved = ResolvedImage(
        location="",
        digest=Digest.parse(DIGEST),
        manifest_digest=Digest.parse(DIGEST),
        platform=Platform(),
        env=(),
        layers=(),
    )
    return Checked(image=image, resolved=resolved)


class Backend:
    """A backend with some objects, which keeps what is applied."""

    def __init__(self, **there):
        self.there, self.applied = there, []

    def get(self, kind, namespace, name):
        if kind not in self.there:
            raise NotFound(f"no {kind}")
        return self.there[kind]

    def annotate(self, kind, namespace, name, annotations, *, uid):
        self.annotated = (kind, namespace, name, annotations, uid)

    def apply(self, manifests, *, namespace):
        self.applied = list(manifests)
        return [
            Applied(kind=one["kind"], namespace=namespace, name=one["metadata"]["name"], action="created")
            for one in self.applied
        ]


def test_the_volume_is_pinned_to_the_digest_that_was_verified():
    body = data_volume(Path("/b/golden.tar"), checked(), "images", 1 << 20, cosign_keys="/k.pub", storage_class="fast")
    assert body["metadata"]["name"] == "fedora-a1a1a1a1a1a1"
    assert body["metadata"]["annotations"] == {
        "cdi.kubevirt.io/policy.checksum": DIGEST,
        "cdi.kubevirt.io/policy.cosignKeys": "/k.pub",
    }
    assert body["spec"] == {
        "source": {"registry": {"url": "oci-archive:/b/golden.tar:fedora", "platform": {"architecture": "arm64"}}},
        "storage": {"resources": {"requests": {"storage": "1Mi"}}, "storageClassName": "fast"},
    }
    request = request_of(Path("/b/golden.tar"), checked())
    assert (request.checksum, request.access.architecture) == (DIGEST, "arm64")
    upload = upload_volume(checked(), "images", 1, storage_class=None)
    assert upload["spec"]["source"] == {"upload": {}}
    assert upload["metadata"]["annotations"]["cdi.kubevirt.io/golden.bundleDigest"] == DIGEST


def earlier(*, digest=DIGEST, phase="Succeeded", **annotations):
    """A DataVolume of an earlier upload."""
    metadata = {"annotations": {"cdi.kubevirt.io/golden.bundleDigest": digest, **annotations}}
    return {"metadata": metadata, "spec": {"source": {"upload": {}}}, "status": {"phase": phase}}


def test_an_upload_that_succeeded_is_not_repeated(tmp_path):
    session = SimpleNamespace(backend=Backend(dv=earlier()), namespace="images", root=tmp_path)
    _upload(session, tmp_path / "missing.tar", checked(), None, None, None, None, None, insecure=False)
    assert session.backend.applied == []
    assert not is_uploaded(Backend(dv=earlier(phase="UploadReady")), checked(), "images")
    assert not is_uploaded(Backend(), checked(), "images")


@pytest.mark.parametrize(
    "body",
    [
        earlier(digest=f"sha256:{'b2' * 32}"),
        {**earlier(), "metadata": {}},
        {**earlier(), "spec": {"source": {"blank": {}}}},
    ],
)
def test_a_volume_with_other_or_unknown_content_is_not_used_for_an_upload(body, tmp_path):
    session = SimpleNamespace(backend=Backend(dv=body), namespace="images", root=tmp_path)
    with pytest.raises(AlreadyExists, match="another source or verification"):
        _upload(session, tmp_path / "missing.tar", checked(), None, None, None, None, None, insecure=False)


def test_a_volume_of_an_import_that_verified_less_is_not_used():
    def wanted(keys):
        return data_volume(Path("/b/golden.tar"), checked(), "images", 1 << 20, cosign_keys=keys, storage_class=None)

    unsigned, limited = wanted(None), wanted("/k.pub")
    limited["metadata"]["annotations"]["cdi.kubevirt.io/policy.bandwidth"] = "1Mi"
    assert find_earlier(Backend(dv=limited), wanted("/k.pub")) == limited
    with pytest.raises(AlreadyExists, match=r"policy\.cosignKeys"):
        find_earlier(Backend(dv=unsigned), wanted("/k.pub"))
    unsigned["metadata"]["annotations"]["cdi.kubevirt.io/policy.checksum"] = f"sha256:{'b2' * 32}"
    with pytest.raises(AlreadyExists, match=r"policy\.checksum"):
        find_earlier(Backend(dv=unsigned), wanted(None))


def test_labels_and_metadata_of_a_bundle_cannot_claim_what_is_not_theirs():
    labels = {"instancetype.kubevirt.io/default-preference": "f", "cdi.kubevirt.io/dataImportCron": "mine", "app": "x"}
    backend = Backend(pvc={"metadata": {"uid": "u"}})
    offer(backend, checked(labels=labels, cron=CRON), "images", with_cron=True)
    record = {"cdi.kubevirt.io/golden.record": '{"record":1}'}
    assert backend.annotated == ("pvc", "images", "fedora-a1a1a1a1a1a1", record, "u")
    source, cron = backend.applied
    assert source["metadata"]["labels"] == {"instancetype.kubevirt.io/default-preference": "f"}
    assert cron["metadata"] == {
        "name": "fedora",
        "namespace": "images",
        "annotations": {"cdi.kubevirt.io/golden.proof": "boot"},
    }
    assert cron["spec"]["schedule"] == ""
    offer(backend, checked(cron=CRON), "images", with_cron=False)
    assert [one["kind"] for one in backend.applied] == ["DataSource"]


def test_what_a_cron_manages_is_left_alone():
    managed = {"metadata": {"labels": {"cdi.kubevirt.io/dataImportCron": "fedora"}}}
    require_free(Backend(), checked(cron=CRON), "images", with_cron=True)
    require_free(Backend(datasource=managed), checked(), "images", with_cron=False)
    require_free(Backend(dataimportcron={}), checked(cron=CRON), "images", with_cron=False)
    with pytest.raises(Conflict, match="managed by DataImportCron fedora"):
        require_free(Backend(datasource=managed, dataimportcron={}), checked(), "images", with_cron=False)
    with pytest.raises(Conflict, match="already exists"):
        require_free(Backend(dataimportcron={}), checked(cron=CRON), "images", with_cron=True)


class TestRecords:
    @pytest.fixture
    def pair(self, tmp_path):
        private, public = keys(tmp_path)
        return private.read_bytes(), public.read_bytes()

    def image(self, *records, record=None, document=None):
        one = checked()
        image = BundledImage(
            name="fedora",
            document=document or one.image.document,
            digest=one.image.digest,
            records=records,
            record=None if record is None else record.decode(),
        )
        return image, one.resolved

    def statement(self, digest=DIGEST):
        return build_statement(
            GoldenVersion(name="x", digest=digest, state="Available"), ImportFacts(namespace="n", cron="c")
        )

    def test_a_signed_record_of_this_image_counts(self, pair):
        record = sign(self.statement(), pair[0], where="key").to_json()
        assert verify_records(*self.image(record), pair[1], "bundle")

    def test_a_statement_of_the_bundle_counts_beside_an_unsigned_record(self, pair):
        statement = bundle_statement(checked().image.document, {"digest": DIGEST})
        signed = sign(statement, pair[0], where="key").to_json()
        assert verify_records(*self.image(self.statement(), signed), pair[1], "bundle")

    def test_records_of_another_image_unsigned_ones_and_none_do_not(self, pair):
        other = sign(self.statement(f"sha256:{'b2' * 32}"), pair[0], where="key").to_json()
        for records in ((), (self.statement(),), (other,)):
            with pytest.raises(SignatureMissing):
                verify_records(*self.image(*records), pair[1], "bundle")

    def test_an_altered_record_does_not(self, pair):
        good = sign(self.statement(), pair[0], where="key")
        moved = Envelope(
            payload=good.payload.replace(b'"n/c"', b'"n/d"'), payload_type=good.payload_type, signatures=good.signatures
        )
        with pytest.raises(SignatureInvalid):
            verify_records(*self.image(moved.to_json()), pair[1], "bundle")

    def test_only_a_record_that_the_key_signed_is_passed_on(self, pair):
        good = sign(self.statement(), pair[0], where="key").to_json()
        vouching = sign(bundle_statement(checked().image.document, {"digest": DIGEST}), pair[0], where="key").to_json()
        forged = self.statement()
        elsewhere = sign(self.statement(f"sha256:{'b2' * 32}"), pair[0], where="key").to_json()
        assert verify_records(*self.image(good, vouching, record=good), pair[1], "bundle").record == good.decode()
        for record in (forged, elsewhere):
            found = verify_records(*self.image(record, vouching, record=record), pair[1], "bundle")
            assert found.key
            assert found.record is None

    @pytest.mark.parametrize(
        "signed",
        [
            {"name": "debian"},
            {"version": GoldenVersion(name="x", digest=f"sha256:{'b2' * 32}", state="Available")},
            {"version": GoldenVersion(name="y", digest=DIGEST, state="Available")},
        ],
    )
    def test_a_signed_statement_about_another_golden_image_or_version_is_refused(self, pair, signed):
        document = checked().image.document
        statement = bundle_statement(replace(document, **signed), {"digest": DIGEST})
        record = sign(statement, pair[0], where="key").to_json()
        with pytest.raises(SignatureInvalid, match="contradicts the signed statement"):
            verify_records(*self.image(record), pair[1], "bundle")

    def test_a_signed_record_of_the_image_under_another_version_is_refused(self, pair):
        record = sign(self.statement(), pair[0], where="key").to_json()
        version = GoldenVersion(name="x", digest=f"sha256:{'b2' * 32}", state="Available")
        document = replace(checked().image.document, version=version, original=False)
        with pytest.raises(SignatureInvalid, match="contradicts the signed statement"):
            verify_records(*self.image(record, document=document), pair[1], "bundle")


def test_a_record_of_an_earlier_unverified_import_does_not_stay_beside_a_verified_one():
    record = {"cdi.kubevirt.io/golden.record": '{"forged":1}'}
    backend = Backend(pvc={"metadata": {"uid": "u", "annotations": record}})
    one = checked()
    without = replace(one, image=replace(one.image, record=None), key="id")
    offer(backend, without, "images", with_cron=False)
    assert backend.annotated[3] == {"cdi.kubevirt.io/golden.record": None}


@pytest.mark.parametrize(
    "cron",
    [
        7,
        {"kind": "Secret"},
        {**CRON, "metadata": {}},
        {**CRON, "spec": "x"},
        {**CRON, "metadata": {"name": "x", "labels": 1}},
    ],
)
def test_a_cron_of_another_shape_is_refused(cron):
    document = json.loads(checked().image.document.to_json()) | {"dataImportCron": cron}
    with pytest.raises(BundleInvalid):
        GoldenDocument.from_json(json.dumps(document).encode(), "bundle")


def test_a_description_survives_the_round_trip():
    document = checked(cron=CRON, labels={"a": "b"}, size=5).image.document
    assert GoldenDocument.from_json(document.to_json(), "bundle") == document
