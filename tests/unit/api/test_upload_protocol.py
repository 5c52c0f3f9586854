import base64
import hashlib

import pytest

from cdi.api.digest import Digest
from cdi.api.errors import UploadMalformed, UploadUnknown, all_errors
from cdi.api.upload_protocol import (
    PlainUpload,
    TusUpload,
    UploadId,
    content_digests,
    declared_digest,
    number,
    piece_checksum,
    route,
    status_of_code,
    tus_path,
    upload_metadata,
)

NAME = "0123456789abcdef" * 2
SHA = Digest("sha256", hashlib.sha256(b"x").hexdigest())
ENCODED = base64.b64encode(bytes.fromhex(SHA.hex)).decode()


def test_paths():
    assert route("/v1alpha1/upload-form-async") == PlainUpload(
        path="/v1alpha1/upload-form-async", form=True, asynchronous=True
    )
    assert route("/v1beta1/upload-archive") == PlainUpload(path="/v1beta1/upload-archive", archive=True)
    assert route("/v1beta1/tus/ns/vm") == route("/v1beta1/tus/ns/vm/") == TusUpload(namespace="ns", claim="vm")
    assert route(tus_path("ns", "vm", f"{NAME}-5")) == TusUpload(namespace="ns", claim="vm", id=f"{NAME}-5")


@pytest.mark.parametrize("path", ["", "/", "/v1beta1/upload/", "/v1alpha1/upload-archive", "/v1beta1/tus/ns", "/v1beta1/tus/ns/vm/x",
                                  "/v1beta1/tus/../vm", "/v1beta1/tus/ns/vm/" + NAME + "-5/more", "/v1beta1/tus/ns/vm%2f"])  # fmt: skip
def test_other_paths(path):
    assert route(path) is None


@pytest.mark.parametrize("digest", [None, SHA])
def test_the_name_of_an_upload_says_what_has_to_be_known_of_it(digest):
    upload = UploadId(nonce=NAME, length=7, digest=digest)
    assert UploadId.parse(str(upload)) == upload


@pytest.mark.parametrize("text", ["", NAME, f"{NAME}-", f"{NAME}-x", f"{NAME}-9999999999999999999", f"{NAME}-5-sha256-abcd", f"{NAME}-5-none-{'a' * 64}"])  # fmt: skip
def test_names_that_are_none(text):
    with pytest.raises(UploadUnknown):
        UploadId.parse(text)


def test_numbers():
    assert number({}, "Upload-Length") is None
    assert number({"upload-length": "0"}, "Upload-Length") == 0
    for text in ("", "-1", "1.5", " 1", "9" * 31, "٣"):
        with pytest.raises(UploadMalformed):
            number({"upload-length": text}, "Upload-Length")


def test_metadata():
    assert upload_metadata(None) == {}
    assert upload_metadata("filename aW1hZ2U=, empty ,is_x") == {"filename": "image", "empty": "", "is_x": ""}
    with pytest.raises(UploadMalformed):
        upload_metadata("filename not base64!")


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("content-md5", base64.b64encode(bytes(16)).decode(), (Digest("md5", "0" * 32),)),
        ("digest", f"SHA-256={ENCODED}", (SHA,)),
        ("digest", f"unixsum=30637, sha-256={ENCODED}", (SHA,)),
        ("content-digest", f"sha-256=:{ENCODED}:", (SHA,)),
        ("repr-digest", f"crc32=:AAAAAA==:,sha-256=:{ENCODED}:;x=1", (SHA,)),
        ("content-type", "x", ()),
    ],
)
def test_digests_of_a_body(field, value, found):
    assert content_digests({field: value}) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [("content-md5", "x"), ("content-md5", ENCODED), ("digest", "sha-256"), ("digest", "sha-256=!"),
     ("content-digest", f"sha-256={ENCODED}"), ("repr-digest", "sha-256=:AAAA:")],
)  # fmt: skip
def test_a_digest_that_cannot_be_read_is_not_passed_over(field, value):
    with pytest.raises(UploadMalformed):
        content_digests({field: value})


def test_digest_of_a_resumable_upload():
    text = base64.b64encode(str(SHA).encode()).decode()
    assert declared_digest({"upload-metadata": f"checksum {text}"}) == SHA
    assert declared_digest({"repr-digest": f"sha-256=:{ENCODED}:"}) == SHA
    assert declared_digest({}) is None
    with pytest.raises(UploadMalformed):
        declared_digest({"upload-metadata": "checksum eA=="})


def test_checksum_of_a_piece():
    assert piece_checksum(None) is None
    assert piece_checksum(f"sha256 {ENCODED}") == SHA
    for text in ("sha512 AAAA", f"sha1 {ENCODED}", "sha256", ""):
        with pytest.raises(UploadMalformed):
            piece_checksum(text)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("TokenInvalid", 401), ("TokenMisused", 400), ("UploadMalformed", 400), ("TargetTooSmall", 400),
        ("ImageCorrupt", 400), ("ChecksumMismatch", 400), ("AlreadyUploaded", 409), ("UploadNotReady", 503),
        ("UploadUnderWay", 503), ("ScratchNeeded", 503), ("ClusterUnavailable", 503), ("ClusterForbidden", 500),
        ("TargetIo", 500), ("InternalError", 500), ("SourceStalled", 408), ("UploadUnknown", 404),
    ],
)  # fmt: skip
def test_statuses(code, status):
    assert status_of_code(code) == status


def test_every_failure_has_a_status():
    for error in all_errors():
        assert 400 <= status_of_code(error.__name__) < 600
