"""Tests of cosign's signatures: both formats, every kind of key, and documents of a hostile registry."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, ImageUnsigned, Retry, SignatureInvalid, VerificationKeyInvalid
from cdi.api.image_signature import MAX_SIGNATURE_DOCUMENT, SignatureDocument
from cdi.verify.cosign import CosignVerifier, Unverified, Verified, verify
from cdi.verify.public_keys import parse_keys, read_keys

IMAGE, OTHER = Digest("sha256", "a" * 64), Digest("sha256", "b" * 64)
SIGNERS = {
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "rsa": rsa.generate_private_key(65537, 2048),
}
STRANGER = ec.generate_private_key(ec.SECP256R1())
STATEMENT_TYPE, PREDICATE = "https://in-toto.io/Statement/v1", "https://sigstore.dev/cosign/sign/v1"


def pem(private):
    return private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def trusted(*names):
    return tuple(key for name in names for key in parse_keys(pem(SIGNERS[name]), f"{name}.pub"))


def signed(private, message, algorithm=None):
    algorithm = algorithm or hashes.SHA256()
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.sign(message, ec.ECDSA(algorithm))
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(message, padding.PKCS1v15(), algorithm)
    return private.sign(message)


def text(raw):
    return base64.b64encode(raw).decode()


def payload(digest=IMAGE, **critical):
    body = {
        "identity": {"docker-reference": "registry/other/name"},
        "image": {"docker-manifest-digest": str(digest)},
        "type": "cosign container image signature",
    } | critical
    return json.dumps({"critical": body, "optional": None}).encode()


def simple(private, body=None, *, algorithm=None, signature=None, certificate=False):
    body = payload() if body is None else body
    signature = text(signed(private, body, algorithm)) if signature is None else signature
    return SignatureDocument(kind="simple-signing", body=body, signature=signature, has_certificate=certificate)


def statement(digest=IMAGE, *, predicate=PREDICATE, kind=STATEMENT_TYPE):
    subject = [{"name": "", "digest": {digest.algorithm: digest.hex}}]
    return json.dumps({"_type": kind, "subject": subject, "predicateType": predicate, "predicate": {}}).encode()


def bundle(private, content=None, *, algorithm=None, material=None, media_type="application/vnd.in-toto+json"):
    content = statement() if content is None else content
    pae = b" ".join([b"DSSEv1", b"%d" % len(media_type), media_type.encode(), b"%d" % len(content), content])
    envelope = {
        "payload": text(content),
        "payloadType": media_type,
        "signatures": [{"sig": text(signed(private, pae, algorithm))}],
    }
    return wrapped({"dsseEnvelope": envelope}, material)


def wrapped(content, material=None):
    body = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": material or {"publicKey": {"hint": "x"}},
        **content,
    }
    return SignatureDocument(kind="bundle", body=json.dumps(body).encode())


def checked(document, *names, digests=(IMAGE,)):
    return verify(document, trusted(*(names or ("p256",))), digests)


@pytest.mark.parametrize("make", [simple, bundle])
@pytest.mark.parametrize("name", SIGNERS)
def test_each_kind_of_key_verifies_its_signature_and_no_other_one(name, make):
    document = make(SIGNERS[name])
    found = checked(document, name)
    assert isinstance(found, Verified)
    assert (found.key.name, found.digests) == (f"{name}.pub", {IMAGE})
    others = [other for other in SIGNERS if other != name]
    assert isinstance(checked(document, *others), Unverified)
    assert checked(document, *others, name).key.name == f"{name}.pub"


@pytest.mark.parametrize("make", [simple, bundle])
@pytest.mark.parametrize(("name", "algorithm"), [("p384", hashes.SHA384()), ("p521", hashes.SHA512())])
def test_a_larger_curve_may_sign_with_its_own_hash(name, algorithm, make):
    assert isinstance(checked(make(SIGNERS[name], algorithm=algorithm), name), Verified)


@pytest.mark.parametrize("make", [simple, bundle])
def test_a_weaker_hash_is_rejected(make):
    assert isinstance(checked(make(SIGNERS["p256"], algorithm=hashes.SHA1())), Unverified)  # noqa: S303 - the point
    assert isinstance(checked(make(SIGNERS["rsa"], algorithm=hashes.SHA512()), "rsa"), Unverified)


def test_a_signature_by_openssl_is_verified(tmp_path):
    key, body, out = tmp_path / "key.pem", tmp_path / "payload", tmp_path / "signature"
    body.write_bytes(payload())
    for command in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key],
        ["ec", "-in", key, "-pubout", "-out", tmp_path / "public.pem"],
        ["dgst", "-sha256", "-sign", key, "-out", out, body],
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    document = SignatureDocument(kind="simple-signing", body=body.read_bytes(), signature=text(out.read_bytes()))
    found = verify(document, read_keys([str(tmp_path / "public.pem")]), [IMAGE])
    assert isinstance(found, Verified)


@pytest.mark.parametrize("name", ["p256", "rsa"])
def test_a_signature_of_the_manifest_itself_is_verified_by_its_digest(name):
    manifest = b'{"schemaVersion": 2}'
    digest = Digest("sha256", hashed(manifest))
    message = {
        "messageDigest": {"algorithm": "SHA2_256", "digest": text(bytes.fromhex(digest.hex))},
        "signature": text(signed(SIGNERS[name], manifest)),
    }
    document = wrapped({"messageSignature": message})
    assert checked(document, name, digests=[OTHER, digest]).digests == {digest}
    assert isinstance(checked(document, name, digests=[OTHER]), Unverified)
    assert isinstance(checked(document, "ed25519", digests=[digest]), Unverified)


def hashed(content):
    digest = hashes.Hash(hashes.SHA256())
    digest.update(content)
    return digest.finalize().hex()


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (simple(SIGNERS["p256"], payload(type="atomic container signature")), "not of an image"),
        (simple(SIGNERS["p256"], payload(image={})), "contains no digest"),
        (simple(SIGNERS["p256"], payload(image=[])), "is not an object"),
        (simple(SIGNERS["p256"], payload("md5:" + "a" * 32)), "weak"),
        (simple(SIGNERS["p256"], payload("sha256:short")), "hex digits"),
        (simple(SIGNERS["p256"], b"[]"), "is not an object"),
        (simple(SIGNERS["p256"], b"no JSON"), "is not JSON"),
        (simple(SIGNERS["p256"], b'{"critical": {"type": 1, "type": 2}}'), "is not JSON"),
        (simple(SIGNERS["p256"], signature=""), "missing"),
        (simple(SIGNERS["p256"], signature="!"), "not base64"),
        (simple(SIGNERS["p256"], signature="A" * 9000), "too long"),
        (simple(SIGNERS["p256"], payload() + b" " * MAX_SIGNATURE_DOCUMENT), "larger than"),
        (SignatureDocument(kind="bundle", body=b"[" * 1000), "is not JSON"),
        (wrapped({}), "neither an envelope nor a signature, or both"),
        (wrapped({"dsseEnvelope": {}, "messageSignature": {}}), "neither an envelope nor a signature, or both"),
        (bundle(SIGNERS["p256"], statement(Digest("md5", "a" * 32))), "no SHA-2 digest"),
        (bundle(SIGNERS["p256"], json.dumps({"_type": STATEMENT_TYPE, "predicateType": PREDICATE}).encode()),
         "subjects"),
    ],
)  # fmt: skip
def test_a_malformed_signature_is_rejected_with_its_reason(document, reason):
    found = checked(document)
    assert isinstance(found, Unverified)
    assert reason in found.reason


def test_a_changed_payload_is_rejected():
    document = simple(SIGNERS["p256"])
    changed = document.body.replace(IMAGE.hex.encode(), OTHER.hex.encode())
    assert changed != document.body
    forged = SignatureDocument(kind="simple-signing", body=changed, signature=document.signature)
    assert isinstance(checked(forged, digests=[OTHER]), Unverified)


@pytest.mark.parametrize(
    "document",
    [
        bundle(SIGNERS["p256"], statement(predicate="https://slsa.dev/provenance/v1")),
        bundle(SIGNERS["p256"], statement(kind="something else")),
        bundle(SIGNERS["p256"], media_type="text/plain"),
    ],
)
def test_an_attestation_by_a_trusted_key_is_no_signature(document):
    assert checked(document) is None


def test_an_envelope_with_several_signatures_is_rejected():
    body = json.loads(bundle(SIGNERS["p256"]).body)
    body["dsseEnvelope"]["signatures"] *= 2
    found = checked(SignatureDocument(kind="bundle", body=json.dumps(body).encode()))
    assert "exactly one" in found.reason


@given(st.binary(max_size=300), st.text(max_size=100), st.sampled_from(["simple-signing", "bundle"]))
def test_any_document_is_rejected_without_an_exception(body, signature, kind):
    document = SignatureDocument(kind=kind, body=body, signature=signature)
    assert not isinstance(checked(document), Verified)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {"verificationMaterial": JSON | st.just({}), "dsseEnvelope": JSON | st.fixed_dictionaries(
            {"payloadType": st.just("application/vnd.in-toto+json"), "payload": st.just(text(statement())) | JSON,
             "signatures": JSON})}
    )
)  # fmt: skip
def test_a_bundle_of_any_shape_is_rejected_without_an_exception(content):
    document = SignatureDocument(kind="bundle", body=json.dumps(content).encode())
    assert not isinstance(checked(document), Verified)


# --- the verdict --------------------------------------------------------------------------------------------------


def verdict(*documents, unread=()):
    verifier = CosignVerifier(trusted("p256", "ed25519"))
    for document in documents:
        if verifier.accept(document, [IMAGE]):
            return verifier
    return verifier.rejection("docker://h/r", unread)


def test_the_first_trusted_signature_is_accepted():
    verifier = verdict(
        simple(STRANGER), bundle(STRANGER, material={"certificate": {}}), simple(SIGNERS["ed25519"]), simple(STRANGER)
    )
    assert verifier.verified_by == "cosign (ed25519.pub)"


def test_an_image_without_signatures_may_still_be_signed():
    error = verdict(bundle(SIGNERS["p256"], statement(predicate="https://slsa.dev/provenance/v1")))
    assert isinstance(error, ImageUnsigned)
    assert error.retry is Retry.ON_CHANGE
    assert "cosign sign --key" in error.message


def test_a_copied_signature_of_another_image_is_named():
    error = verdict(simple(SIGNERS["p256"], payload(OTHER)), simple(STRANGER))
    assert isinstance(error, SignatureInvalid)
    assert error.retry is Retry.NEVER
    assert "'p256.pub' is of another image" in error.what
    assert str(OTHER) in error.what


def test_unknown_keys_are_rejected_with_the_names_of_the_trusted_ones():
    error = verdict(simple(STRANGER), simple(STRANGER, certificate=True))
    assert isinstance(error, SignatureInvalid)
    assert "p256.pub, ed25519.pub" in error.what
    assert "by another key" in error.what


@pytest.mark.parametrize(
    "document", [simple(STRANGER, certificate=True), bundle(STRANGER, material={"certificate": {"rawBytes": "QQ=="}})]
)
def test_keyless_signatures_are_named_as_unsupported(document):
    error = verdict(document)
    assert isinstance(error, SignatureInvalid)
    assert "keyless signatures only" in error.what


def test_signatures_that_could_not_be_read_are_not_called_missing():
    error = verdict(unread=["a signature of 5000000 bytes is too large; the limit is 65536"])
    assert isinstance(error, SignatureInvalid)
    assert "too large" in error.what


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_are_read_from_files_and_mounted_secrets(tmp_path):
    data = tmp_path / "secret/..2026_01_01"
    data.mkdir(parents=True)
    (data / "b.pub").write_bytes(pem(SIGNERS["rsa"]))
    (data / "a.pub").write_bytes(pem(SIGNERS["p256"]) + b"\n# two keys\n" + pem(SIGNERS["p384"]))
    (tmp_path / "secret/..data").symlink_to(data.name)
    for name in ("a.pub", "b.pub"):
        (tmp_path / "secret" / name).symlink_to(f"..data/{name}")
    (tmp_path / "single.pem").write_bytes(pem(SIGNERS["ed25519"]))
    keys = read_keys([str(tmp_path / "secret"), str(tmp_path / "single.pem")])
    assert [key.name for key in keys] == ["a.pub", "a.pub", "b.pub", "single.pem"]
    assert len({key.fingerprint for key in keys}) == 4


def private_pem(private):
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no public key in PEM form"),
        (b"hello", "no public key in PEM form"),
        (private_pem(SIGNERS["p256"]), "a private key"),
        (pem(SIGNERS["p256"]) + private_pem(SIGNERS["p256"]), "a private key"),
        (b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "contains CERTIFICATE"),
        (b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n", "cannot be parsed"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "curve secp256k1"),
        (pem(dsa.generate_private_key(2048)), "neither ECDSA, Ed25519 nor RSA"),
        (pem(rsa.generate_private_key(65537, 1024)), "has 1024 bits"),  # noqa: S505 - the point
        (b"x" * (64 * 1024 + 1), "larger than 65536 bytes"),
    ],
)
def test_a_file_without_a_usable_public_key_is_rejected(tmp_path, content, reason):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(VerificationKeyInvalid, match=reason) as raised:
        read_keys([str(path)])
    assert raised.value.retry is Retry.ON_CHANGE


def test_a_directory_without_keys_or_with_too_many_is_rejected(tmp_path):
    with pytest.raises(VerificationKeyInvalid, match="no public key is given"):
        read_keys([str(tmp_path)])
    with pytest.raises(VerificationKeyInvalid, match="No such file"):
        read_keys([str(tmp_path / "missing")])
    for number in range(65):
        (tmp_path / str(number)).write_bytes(pem(SIGNERS["p256"]))
    with pytest.raises(VerificationKeyInvalid, match="more than 64"):
        read_keys([str(tmp_path)])


@given(st.binary(max_size=500))
def test_any_content_of_a_key_file_is_rejected_with_an_error(content):
    try:
        parse_keys(b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(content) + b"\n-----END PUBLIC KEY-----\n", "k")
    except CdiError as error:
        assert error.code == "VerificationKeyInvalid"
