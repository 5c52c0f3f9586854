"""Signatures of records of origin: DSSE envelopes signed with Ed25519, or ECDSA over P-256 or P-384.

ECDSA uses the hash that belongs to the curve (SHA-256, SHA-384) and the DER form of signatures, as cosign and
securesystemslib do.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cdi.api.errors import SignatureInvalid, SignatureMissing, SigningKeyInvalid, VerificationKeyInvalid
from cdi.api.origin import PAYLOAD_TYPE, Envelope, Signature, pre_authentication_encoding
from cdi.verify.public_keys import TrustedKey, fingerprint, parse_keys

MAX_KEY = 16 << 10
"""Maximum size of a private key in bytes."""
KEY_NAMES = ("key.pem", "tls.key", "cosign.key", "ssh-privatekey", "privateKey")
"""Names of the key in a Secret that has several entries; the first that exists is used."""
_PRIVATE = "generate one: openssl genpkey -algorithm ed25519"
_PUBLIC = "give the public key in PEM: openssl pkey -in KEY -pubout"
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


def sign(statement: bytes, key: bytes, *, where: str) -> Envelope:
    """Return the envelope of an in-toto statement, signed with a private key in PEM.

    Raises:
        SigningKeyInvalid: The key is unusable; `where` names it.
    """
    private = _private_key(key, where)
    message = pre_authentication_encoding(PAYLOAD_TYPE, statement)
    if isinstance(private, ed25519.Ed25519PrivateKey):
        value = private.sign(message)
    else:
        value = private.sign(message, ec.ECDSA(_hash(private.curve, where)))
    signature = Signature(keyid=fingerprint(private.public_key()), value=value)
    return Envelope(payload=statement, payload_type=PAYLOAD_TYPE, signatures=(signature,))


def key_entry(names: Iterable[str]) -> str:
    """Return the entry of a Secret that holds the private key: the only one, or one of `KEY_NAMES`.

    Raises:
        SigningKeyInvalid: There is none.
    """
    entries = sorted(names)
    chosen = entries if len(entries) == 1 else [name for name in KEY_NAMES if name in entries]
    if not chosen:
        raise SigningKeyInvalid(
            f"the Secret has {len(entries)} entries, and none is named {', '.join(KEY_NAMES)}",
            remedy=f"store the private key under {KEY_NAMES[0]}",
        )
    return chosen[0]


def verify(envelope: Envelope, key: bytes, *, where: str) -> str:
    """Verify that one signature of an envelope was made by a public key in PEM; return the key's id, its fingerprint.

    The envelope's own key ids are not authenticated, so every signature is tried.

    Raises:
        SignatureMissing: The envelope has no signature.
        SignatureInvalid: No signature was made by this key; `where` names the record.
        SigningKeyInvalid: The key is unusable.
    """
    keys = _public_keys(key)
    if not envelope.signatures:
        raise SignatureMissing(
            "the record of origin is not signed", where=where, remedy="sign records with golden.recordKey"
        )
    message = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    for public in keys:
        if any(public.has_signed(message, signature.value) for signature in envelope.signatures):
            return public.fingerprint
    raise SignatureInvalid(
        "the record of origin was not signed by the given key, or was altered",
        where=where,
        remedy=f"check that key {keys[0].fingerprint[:16]}… belongs to the maker of the record",
    )


def _public_keys(pem: bytes) -> tuple[TrustedKey, ...]:
    try:
        return parse_keys(pem, "the public key")
    except VerificationKeyInvalid as error:
        raise SigningKeyInvalid(
            f"it is not a public key in PEM: {error.what}", where="the public key", remedy=_PUBLIC
        ) from error


def _private_key(text: bytes, where: str) -> PrivateKey:
    if len(text) > MAX_KEY:
        raise SigningKeyInvalid(f"the key has more than {MAX_KEY} bytes", where=where)
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except TypeError as error:
        raise SigningKeyInvalid(
            "the private key is encrypted with a password", where=where, remedy="store it without one"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyInvalid("it is not a private key in PEM", where=where, remedy=_PRIVATE) from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        _hash(key.curve, where)
        return key
    raise SigningKeyInvalid("the key is neither Ed25519 nor ECDSA", where=where, remedy=_PRIVATE)


def _hash(curve: ec.EllipticCurve, where: str) -> hashes.HashAlgorithm:
    if isinstance(curve, ec.SECP256R1):
        return hashes.SHA256()
    if isinstance(curve, ec.SECP384R1):
        return hashes.SHA384()
    raise SigningKeyInvalid(f"the curve {curve.name} is not supported", where=where, remedy="use P-256 or P-384")
