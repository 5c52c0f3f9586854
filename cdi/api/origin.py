"""Records of origin: where a version of a golden image comes from, and what was verified before it was offered.

A record is an in-toto Statement v1 (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md) whose
predicate is SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance): an import is a build with one dependency, the
source. This predicate is used, and not one of our own, because policy engines already read it; what it has no field for
is in extension fields with the prefix ``cdi_``, as its specification asks. A signed record is a DSSE envelope
(https://github.com/secure-systems-lab/dsse) around the statement.

The bytes are deterministic: the same version always gives the same record.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

from cdi.api.dataimportcron import GoldenVersion
from cdi.api.decode import JsonRecord
from cdi.api.digest import Digest
from cdi.api.errors import ChecksumInvalid, InvalidManifest, SignatureInvalid
from cdi.api.image_facts import ImageFacts
from cdi.api.job import Failure
from cdi.api.json_document import parse_json
from cdi.api.names import GROUP

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
BUILD_TYPE: Final = f"https://{GROUP}/golden-import/v1"
BUILDER_ID: Final = f"https://{GROUP}/importer"

MAX_RECORD: Final = 16 << 10
"""Maximum size in bytes of a record, signed or not: all annotations of an object share 256 KiB."""
MAX_STATEMENT: Final = 11 << 10
"""Maximum size in bytes of a statement, which base64 and signatures in the envelope enlarge."""
_MAX_REFERENCE = 2048
_MAX_TEXT = 500
_MAX_CHECKS = 32
_MAX_SIGNATURES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFacts:
    """Facts that the import of a version recorded about it; a field is empty where nothing was recorded."""

    namespace: str
    """Namespace of the DataImportCron."""
    cron: str
    """Name of the DataImportCron."""
    invocation: str = ""
    """UID of the PVC that the import filled."""
    image: ImageFacts = field(default_factory=ImageFacts)
    builder: Mapping[str, str] = field(default_factory=dict)
    """Versions by the name of the program: cdi, qemu."""

    @classmethod
    def of_annotations(
        cls,
        namespace: str,
        cron: str,
        uid: str,
        annotations: Mapping[str, str],
        *,
        builder: Mapping[str, str] | None = None,
    ) -> Self:
        """Read the facts in the annotations of a version's PVC (or of its VolumeSnapshot, which may have copies)."""
        image = ImageFacts.read(annotations)
        return cls(namespace=namespace, cron=cron, invocation=uid, image=image, builder=builder or {})


def build_statement(version: GoldenVersion, facts: ImportFacts) -> bytes:
    """Return the record of a version as canonical JSON; raise `InvalidManifest` if it is too large.

    The first subject is the version with the digest that polls compare; the second, if recorded, is the image with the
    digest of its bytes. They differ for sources that have no digest of their own.
    """
    identity = _digest_set(version.digest)
    content = _digest_set(facts.image.digest or "")
    source = public_reference(version.source or "")
    subject = [{"name": version.name[:_MAX_TEXT], "digest": identity}]
    if content:
        subject.append({"name": f"{version.name[:_MAX_TEXT]}/image", "digest": content})
    size = "" if facts.image.virtual_size is None else str(facts.image.virtual_size)
    checks = facts.image.verified_by or tuple(version.verified_by or ())
    details: dict[str, Any] = {
        "builder": {"id": BUILDER_ID, "version": {name: text[:_MAX_TEXT] for name, text in facts.builder.items()}},
        "metadata": _present(
            invocationId=facts.invocation, startedOn=version.found or "", finishedOn=version.imported or ""
        ),
        "cdi_verifiedBy": [check[:_MAX_TEXT] for check in checks[:_MAX_CHECKS]],
    }
    if version.proof is not None:
        details["cdi_bootProof"] = {
            "booted": version.proof.booted,
            **_present(
                message=(version.proof.message or "")[:_MAX_TEXT],
                accelerator=(version.proof.accelerator or "")[:_MAX_TEXT],
                finished=version.proof.finished or "",
            ),
        }
    dependency = {**_present(uri=source), "digest": identity}
    document = {
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _present(
                    source=source,
                    architecture=version.architecture or "",
                    dataImportCron=f"{facts.namespace}/{facts.cron}",
                ),
                "internalParameters": _present(format=facts.image.format or "", virtualSize=size),
                "resolvedDependencies": [dependency],
            },
            "runDetails": details,
        },
    }
    statement = canonical(document)
    if len(statement) > MAX_STATEMENT:
        raise InvalidManifest(
            f"the record of origin has {len(statement)} bytes; the limit is {MAX_STATEMENT}",
            where=f"{facts.namespace}/{version.name}",
            remedy="shorten the URL of the source",
        )
    return statement


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return JSON with sorted keys, without spaces, in ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def public_reference(reference: str) -> str:
    """Return a URL or image reference without user, query and fragment, any of which may contain a secret."""
    if "://" not in reference:
        return reference[:_MAX_REFERENCE]
    try:
        parts = urlsplit(reference)
    except ValueError:
        return ""
    if parts.scheme == "docker":
        # The digest's @ belongs to the path; a user name would be in the host.
        host = parts.netloc.rpartition("@")[2] if "@" in parts.netloc and "/" in parts.path else parts.netloc
        return f"docker://{host}{parts.path}"[:_MAX_REFERENCE]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))[:_MAX_REFERENCE]


def _present(**fields: str) -> dict[str, str]:
    return {name: text for name, text in fields.items() if text}


def _digest_set(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        digest = Digest.parse(text)
    except ChecksumInvalid:
        return {}
    return {digest.algorithm: digest.hex}


# --- signatures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature of an envelope."""

    keyid: str
    """A hint only: SHA-256 of the public key (SubjectPublicKeyInfo, DER) in hex, where we signed."""
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A DSSE envelope."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]

    def to_json(self) -> bytes:
        return canonical(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [
                    {"keyid": one.keyid, "sig": base64.b64encode(one.value).decode()} for one in self.signatures
                ],
            }
        )


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a signature covers: PAE of the DSSE protocol."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_record(text: str | bytes) -> Envelope:
    """Parse a record; one without a signature becomes an envelope without signatures.

    Raises:
        SignatureInvalid: It is neither a DSSE envelope nor an in-toto statement, or too large.
    """
    body = text.encode() if isinstance(text, str) else text
    if len(body) > MAX_RECORD:
        raise SignatureInvalid(f"the record of origin has {len(body)} bytes; the limit is {MAX_RECORD}", remedy=_REMEDY)
    document = _object(body)
    if document.get("_type") == STATEMENT_TYPE:
        return Envelope(payload=body, payload_type=PAYLOAD_TYPE, signatures=())
    payload, kind, signatures = (document.get(name) for name in ("payload", "payloadType", "signatures"))
    if not isinstance(payload, str) or not isinstance(kind, str) or not isinstance(signatures, list):
        raise SignatureInvalid("the record is neither a DSSE envelope nor an in-toto statement", remedy=_REMEDY)
    if kind != PAYLOAD_TYPE or len(signatures) > _MAX_SIGNATURES:
        raise SignatureInvalid(
            f"the envelope contains {kind[:80]!r} with {len(signatures)} signatures", remedy=f"give {PAYLOAD_TYPE}"
        )
    parsed = tuple(_signature(one) for one in signatures)
    return Envelope(payload=_base64(payload), payload_type=kind, signatures=parsed)


def parse_statement(payload: bytes) -> dict[str, Any]:
    """Parse an in-toto statement with SLSA provenance; raise `SignatureInvalid` if it is anything else."""
    document = _object(payload)
    subjects = document.get("subject")
    if (
        document.get("_type") != STATEMENT_TYPE
        or document.get("predicateType") != PREDICATE_TYPE
        or not isinstance(document.get("predicate"), dict)
        or not isinstance(subjects, list)
        or not all(isinstance(one, dict) for one in subjects)
    ):
        raise SignatureInvalid("the record is not an in-toto statement with SLSA provenance", remedy=_REMEDY)
    return document


def subject_digests(statement: Mapping[str, Any]) -> frozenset[str]:
    """Return the digests ``algorithm:hex`` of all subjects of a parsed statement."""
    found = set()
    for subject in statement["subject"]:
        digests = subject.get("digest")
        for algorithm, value in digests.items() if isinstance(digests, dict) else ():
            if isinstance(value, str):
                found.add(f"{algorithm}:{value}")
    return frozenset(found)


_REMEDY: Final = "get the record again from the object that has it"


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = parse_json(body, unique_fields=True)
    except ValueError as error:
        raise SignatureInvalid("the record of origin is not JSON", remedy=_REMEDY) from error
    if not isinstance(document, dict):
        raise SignatureInvalid("the record of origin is not a JSON object", remedy=_REMEDY)
    return document


def _signature(value: Any) -> Signature:
    sig = value.get("sig") if isinstance(value, dict) else None
    if not isinstance(sig, str):
        raise SignatureInvalid("a signature of the envelope has no sig", remedy=_REMEDY)
    keyid = value.get("keyid")
    return Signature(keyid=keyid if isinstance(keyid, str) else "", value=_base64(sig))


def _base64(text: str) -> bytes:
    """Decode standard or URL-safe base64, both of which the envelope's specification allows."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureInvalid("a field of the envelope is not base64", remedy=_REMEDY) from error


# --- the signing worker ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SignResult(JsonRecord):
    """Result of a signing worker; `failure` is None on success."""

    id: str
    """UID of the PVC or VolumeSnapshot."""
    statement: str = ""
    """SHA-256 of the signed statement in hex."""
    keyid: str = ""
    signature: str = ""
    """Base64."""
    failure: Failure | None = None
