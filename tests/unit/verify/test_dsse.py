"""Tests of signed records of origin, with openssl as the foreign verifier and signer."""

from __future__ import annotations

import subprocess

import pytest

from cdi.api.errors import SignatureInvalid, SignatureMissing, SigningKeyInvalid
from cdi.api.origin import PAYLOAD_TYPE, Envelope, Signature, parse_record, pre_authentication_encoding
from cdi.verify.dsse import MAX_KEY, key_entry, sign, verify
from cdi.verify.public_keys import parse_keys

STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'
KINDS = {
    "ed25519": ["-algorithm", "ed25519"],
    "p256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
}


def openssl(*words, **more):
    return subprocess.run(["openssl", *map(str, words)], capture_output=True, check=True, **more).stdout


def key_id(public):
    return parse_keys(public.read_bytes(), "key")[0].fingerprint


@pytest.fixture(params=KINDS)
def keys(request, tmp_path):
    """Kind, and the paths of a private and a public key that openssl made."""
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    openssl("genpkey", *KINDS[request.param], "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return request.param, private, public


def test_openssl_verifies_what_was_signed_here(keys, tmp_path):
    kind, private, public = keys
    envelope = parse_record(sign(STATEMENT, private.read_bytes(), where="key").to_json())
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(pre_authentication_encoding(PAYLOAD_TYPE, envelope.payload))
    signature.write_bytes(envelope.signatures[0].value)
    digest = {"ed25519": [], "p256": ["-digest", "sha256"], "p384": ["-digest", "sha384"]}[kind]
    said = openssl(
        "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", *digest, "-in", message, "-sigfile", signature
    )
    assert b"Signature Verified Successfully" in said


def test_what_openssl_signed_is_verified_here(keys, tmp_path):
    kind, private, public = keys
    message = tmp_path / "message"
    message.write_bytes(pre_authentication_encoding(PAYLOAD_TYPE, STATEMENT))
    digest = {"ed25519": [], "p256": ["-digest", "sha256"], "p384": ["-digest", "sha384"]}[kind]
    value = openssl("pkeyutl", "-sign", "-inkey", private, "-rawin", *digest, "-in", message)
    envelope = Envelope(payload=STATEMENT, payload_type=PAYLOAD_TYPE, signatures=(Signature(keyid="", value=value),))
    assert verify(envelope, public.read_bytes(), where="record") == key_id(public)


def test_the_key_id_is_the_digest_of_the_public_key(keys):
    _, private, public = keys
    der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
    digest = openssl("dgst", "-sha256", "-r", input=der).decode().split()[0]
    assert sign(STATEMENT, private.read_bytes(), where="key").signatures[0].keyid == digest


def test_an_altered_payload_type_or_signature_is_refused(keys):
    _, private, public = keys
    good = sign(STATEMENT, private.read_bytes(), where="key")
    flipped = bytes([good.signatures[0].value[0] ^ 1]) + good.signatures[0].value[1:]
    for bad in (
        Envelope(payload=STATEMENT + b" ", payload_type=good.payload_type, signatures=good.signatures),
        Envelope(payload=STATEMENT, payload_type="text/plain", signatures=good.signatures),
        Envelope(
            payload=STATEMENT,
            payload_type=good.payload_type,
            signatures=(Signature(keyid=good.signatures[0].keyid, value=flipped),),
        ),
    ):
        with pytest.raises(SignatureInvalid):
            verify(bad, public.read_bytes(), where="record")


def test_another_key_is_refused_even_if_the_envelope_claims_its_id(keys, tmp_path):
    _, private, public = keys
    other = tmp_path / "other.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", other)
    forged = sign(STATEMENT, other.read_bytes(), where="key")
    claimed = Signature(keyid=key_id(public), value=forged.signatures[0].value)
    with pytest.raises(SignatureInvalid):
        verify(
            Envelope(payload=STATEMENT, payload_type=PAYLOAD_TYPE, signatures=(claimed,)),
            public.read_bytes(),
            where="r",
        )


def test_one_good_signature_among_others_suffices_and_none_is_an_error_of_its_own(keys):
    _, private, public = keys
    good = sign(STATEMENT, private.read_bytes(), where="key").signatures[0]
    both = Envelope(payload=STATEMENT, payload_type=PAYLOAD_TYPE, signatures=(Signature(keyid="", value=b"x"), good))
    assert verify(both, public.read_bytes(), where="record")
    with pytest.raises(SignatureMissing):
        verify(Envelope(payload=STATEMENT, payload_type=PAYLOAD_TYPE, signatures=()), public.read_bytes(), where="r")


def test_unusable_keys_are_refused_by_cause(tmp_path):
    rsa, locked, curve = tmp_path / "rsa", tmp_path / "locked", tmp_path / "curve"
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", rsa)
    openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", locked)
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521", "-out", curve)
    for key, cause in (
        (rsa.read_bytes(), "neither Ed25519 nor ECDSA"),
        (locked.read_bytes(), "password"),
        (curve.read_bytes(), "curve"),
        (b"", "not a private key"),
        (b"x" * (MAX_KEY + 1), "more than"),
    ):
        with pytest.raises(SigningKeyInvalid, match=cause):
            sign(STATEMENT, key, where="key")
    unsigned = Envelope(payload=STATEMENT, payload_type=PAYLOAD_TYPE, signatures=())
    for key in (b"x", locked.read_bytes()):
        with pytest.raises(SigningKeyInvalid, match="not a public key"):
            verify(unsigned, key, where="record")


def test_the_key_of_a_secret_is_its_only_entry_or_the_first_known_name():
    assert key_entry(["anything"]) == "anything"
    assert key_entry(["tls.crt", "tls.key"]) == "tls.key"
    assert key_entry(["tls.key", "key.pem"]) == "key.pem"
    for names in ([], ["a", "b"]):
        with pytest.raises(SigningKeyInvalid):
            key_entry(names)
