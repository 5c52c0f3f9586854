"""Verification of the signatures that cosign makes of container images, with public keys.

Signatures exist in two formats. The older one signs a *simple signing* payload that contains the image's digest
(cosign's ``SIGNATURE_SPEC.md``). The newer one is a Sigstore bundle (``sigstore_bundle.proto``) with a DSSE envelope
around an in-toto statement about the image, or with a signature of the image's manifest.

A signature counts only if one of the given keys made it and it is of the digest that is imported. Certificates, entries
of a transparency log and timestamps are not evaluated, and the image name in a payload is not trusted: a signature is
valid for the same image under any name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdi.api.digest import Digest
from cdi.api.errors import CdiError, ChecksumInvalid, ImageUnsigned, SignatureInvalid
from cdi.api.image_signature import MAX_SIGNATURE_DOCUMENT, SignatureDocument
from cdi.api.json_document import parse_json
from cdi.api.origin import PAYLOAD_TYPE, pre_authentication_encoding
from cdi.verify.public_keys import TrustedKey

_SIMPLE_SIGNING_TYPE = "cosign container image signature"
_STATEMENT_TYPES = frozenset({"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"})
_SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
"""Predicate type of `cosign sign`. Attestations of other types state facts about an image, but do not approve it."""
_MAX_SIGNATURE = 8192
"""Maximum length of a signature in base64; that of the largest RSA key is 2732."""
_MAX_SUBJECTS = 64
_STRONG = frozenset({"sha256", "sha384", "sha512"})
_SIGN = "cosign sign --key KEY HOST/REPOSITORY@DIGEST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A good signature by a trusted key, of images with these digests."""

    key: TrustedKey
    digests: frozenset[Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unverified:
    """A signature that is not good, or not by a trusted key."""

    reason: str
    keyless: bool = False
    """Whether it has a certificate instead of a known key."""


class _Malformed(Exception):
    """A document that cannot be a signature; the text says why."""


class _NotASignature(Exception):
    """A well-formed attestation of another kind."""


class CosignVerifier:
    """A `SignatureVerifier` that requires a signature by one of the keys."""

    def __init__(self, keys: tuple[TrustedKey, ...]) -> None:
        self._keys = keys
        self.signer: TrustedKey | None = None
        """The key of the accepted signature."""
        self._others: list[Verified] = []
        self._failures: list[Unverified] = []

    @property
    def verified_by(self) -> str:
        """The text for `Outcome.verified_by`, once a signature was accepted."""
        assert self.signer is not None
        return f"cosign ({self.signer.name or self.signer.fingerprint[:16]})"

    def accept(self, document: SignatureDocument, digests: Sequence[Digest]) -> bool:
        """Return whether this is a signature of one of the `digests` by one of the keys."""
        found = verify(document, self._keys, digests)
        match found:
            case Verified():
                if found.digests.isdisjoint(digests):
                    self._others.append(found)
                else:
                    self.signer = found.key
            case Unverified():
                self._failures.append(found)
            case None:
                pass
        return self.signer is not None

    def rejection(self, where: str, unread: Sequence[str]) -> CdiError:
        """Return the error for an image that has no signature by one of the keys."""
        if self._others:
            other = self._others[0]
            return SignatureInvalid(
                f"the signature by key {other.key.name!r} is of another image, "
                f"{', '.join(sorted(map(str, other.digests))[:2])}",
                where=where,
                remedy=f"sign this image ({_SIGN}), or find out who copied the signature to it",
            )
        unknown = [failure.reason for failure in self._failures if not failure.keyless]
        if unknown or unread:
            names = ", ".join(dict.fromkeys(key.name for key in self._keys))[:200]
            reasons = "; ".join(dict.fromkeys([*unknown, *unread][:3]))
            return SignatureInvalid(
                f"the image has no signature by a trusted key ({names}): {reasons}",
                where=where,
                remedy=f"sign it with a trusted key ({_SIGN}), or add the public key of its signer",
            )
        if self._failures:
            return SignatureInvalid(
                "the image has keyless signatures only; certificates and transparency logs are not evaluated",
                where=where,
                remedy=f"sign it with a key as well: {_SIGN}",
            )
        return ImageUnsigned("the image has no cosign signature", where=where)


def verify(
    document: SignatureDocument, keys: Sequence[TrustedKey], digests: Sequence[Digest]
) -> Verified | Unverified | None:
    """Verify one stored signature; return None for an attestation that is no signature.

    `digests` are those that a bundle with a bare message signature may be of, as it contains no statement.
    """
    if len(document.body) > MAX_SIGNATURE_DOCUMENT:
        return Unverified(reason=f"the document is larger than {MAX_SIGNATURE_DOCUMENT} bytes")
    try:
        if document.kind == "simple-signing":
            return _verify_payload(document, keys)
        return _verify_bundle(document.body, keys, digests)
    except _NotASignature:
        return None
    except _Malformed as error:
        return Unverified(reason=str(error))


# --- simple signing -----------------------------------------------------------------------------------------------


def _verify_payload(document: SignatureDocument, keys: Sequence[TrustedKey]) -> Verified | Unverified:
    signature = _base64(document.signature, "the signature", _MAX_SIGNATURE)
    key = next((key for key in keys if key.has_signed(document.body, signature)), None)
    if key is None:
        return _not_trusted(keyless=document.has_certificate)
    critical = _object(_parse(document.body, "the payload").get("critical"), "critical")
    if critical.get("type") != _SIMPLE_SIGNING_TYPE:
        raise _Malformed("the signed payload is not of an image")
    image = _object(critical.get("image"), "critical.image")
    return Verified(key=key, digests=frozenset({_digest(image.get("docker-manifest-digest"))}))


# --- bundles ------------------------------------------------------------------------------------------------------


def _verify_bundle(body: bytes, keys: Sequence[TrustedKey], digests: Sequence[Digest]) -> Verified | Unverified:
    bundle = _parse(body, "the bundle")
    material = _object(bundle.get("verificationMaterial"), "verificationMaterial")
    keyless = "certificate" in material or "x509CertificateChain" in material
    envelope, message = bundle.get("dsseEnvelope"), bundle.get("messageSignature")
    if (envelope is None) == (message is None):
        raise _Malformed("the bundle contains neither an envelope nor a signature, or both")
    if envelope is not None:
        return _verify_envelope(_object(envelope, "dsseEnvelope"), keys, keyless=keyless)
    return _verify_message(_object(message, "messageSignature"), keys, digests, keyless=keyless)


def _verify_envelope(envelope: dict[str, Any], keys: Sequence[TrustedKey], *, keyless: bool) -> Verified | Unverified:
    """Verify a DSSE envelope (https://github.com/secure-systems-lab/dsse, version 1)."""
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise _NotASignature
    payload = _base64(envelope.get("payload"), "the payload", 2 * MAX_SIGNATURE_DOCUMENT)
    statement = _parse(payload, "the statement")
    if statement.get("_type") not in _STATEMENT_TYPES or statement.get("predicateType") != _SIGN_PREDICATE:
        raise _NotASignature
    signatures = envelope.get("signatures")
    # The bundle format requires exactly one, so that it is clear which key the other parts of a bundle are about.
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise _Malformed("the envelope does not contain exactly one signature")
    signature = _base64(_object(signatures[0], "signatures[0]").get("sig"), "the signature", _MAX_SIGNATURE)
    signed = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    key = next((key for key in keys if key.has_signed(signed, signature)), None)
    if key is None:
        return _not_trusted(keyless=keyless)
    return Verified(key=key, digests=_subjects(statement.get("subject")))


def _subjects(value: object) -> frozenset[Digest]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_SUBJECTS:
        raise _Malformed(f"the statement does not have 1 to {_MAX_SUBJECTS} subjects")
    found = set()
    for number, subject in enumerate(value):
        digests = _object(_object(subject, f"subject[{number}]").get("digest"), f"subject[{number}].digest")
        found |= {_digest(f"{name}:{text}") for name, text in digests.items() if name in _STRONG}
    if not found:
        raise _Malformed("the subjects of the statement have no SHA-2 digest")
    return frozenset(found)


def _verify_message(
    message: dict[str, Any], keys: Sequence[TrustedKey], digests: Sequence[Digest], *, keyless: bool
) -> Verified | Unverified:
    """Verify a signature of the manifest itself, whose SHA-256 digest is the image's."""
    signature = _base64(message.get("signature"), "the signature", _MAX_SIGNATURE)
    for digest in digests:
        if digest.algorithm != "sha256":
            continue
        for key in keys:
            if key.has_signed_digest(bytes.fromhex(digest.hex), signature):
                return Verified(key=key, digests=frozenset({digest}))
    return _not_trusted(keyless=keyless)


# --- parsing ------------------------------------------------------------------------------------------------------


def _not_trusted(*, keyless: bool) -> Unverified:
    return Unverified(reason="the signature is bad, or by another key", keyless=keyless)


def _parse(body: bytes, what: str) -> dict[str, Any]:
    try:
        document = parse_json(body, unique_fields=True)
    except ValueError as error:
        raise _Malformed(f"{what} is not JSON") from error
    return _object(document, what)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{what} is not an object")
    return value


def _base64(value: object, what: str, most: int) -> bytes:
    if not isinstance(value, str) or not value or len(value) > most:
        raise _Malformed(f"{what} is missing or too long")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _Malformed(f"{what} is not base64") from error


def _digest(value: object) -> Digest:
    if not isinstance(value, str):
        raise _Malformed("the signed payload contains no digest")
    try:
        digest = Digest.parse(value)
    except ChecksumInvalid as error:
        raise _Malformed(error.what) from error
    if digest.algorithm not in _STRONG:
        raise _Malformed(f"the signed digest is weak, {digest.algorithm}")
    return digest
