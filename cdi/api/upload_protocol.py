"""Protocol that upload clients, the proxy and the upload server share: paths, fields, digests and statuses.

Besides the paths of the upstream importer, it includes tus 1.0.0 (https://tus.io/protocols/resumable-upload) with the
extensions in `TUS_EXTENSIONS`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cdi.api.digest import HEX_LENGTH, Digest
from cdi.api.errors import (
    AlreadyUploaded,
    CdiError,
    ChecksumInvalid,
    Conflict,
    ImageError,
    Interrupted,
    NotFound,
    Retry,
    ScratchNeeded,
    SourceError,
    SourceStalled,
    TargetBusy,
    TargetTooSmall,
    TargetUnsuitable,
    TokenInvalid,
    TokenMisused,
    UploadError,
    UploadMalformed,
    UploadNotReady,
    UploadOffsetConflict,
    UploadUnderWay,
    UploadUnknown,
    UsageError,
    VerifyError,
    by_code,
)
from cdi.api.names import is_dns_subdomain

CLIENT_NAME = "client.upload-server.cdi.kubevirt.io"
"""Common name of the client certificate by which an upload server identifies the proxy."""
SERVER_PORT = 8443

TUS_VERSION = "1.0.0"
TUS_EXTENSIONS = "creation,creation-with-upload,termination,checksum,expiration"
TUS_CONTENT = "application/offset+octet-stream"
TUS_ALGORITHMS = ("sha1", "sha256", "md5")
TUS_MISMATCH = 460
"""Status for a chunk that does not match its checksum."""
TUS_START = "/v1beta1/tus/"
"""Prefix of the paths for resumable uploads."""

BODY_KEPT_HEADER = "cdi-body-kept"
"""Request field from the proxy to an upload server: number of bytes at the start of the body that the proxy buffers.

A server that supports the field repeats it in ``100 Continue``. The proxy then sends at most this number of bytes
before it receives ``102 Processing``, which the server sends when it continues to read. If the server rejects the
upload or is lost before that, the proxy can send the complete request to a replacement server.
"""

_MAX_LENGTH = 1 << 60
_NUMBER = re.compile(r"[0-9]{1,30}")
_UPLOAD_ID = re.compile(r"([0-9a-f]{32})-([0-9]{1,19})(?:-([a-z0-9]{3,6})-([0-9a-f]{32,128}))?")
_RFC_NAMES = {"sha-256": "sha256", "sha-512": "sha512", "sha": "sha1", "sha-1": "sha1", "md5": "md5"}
_DIGEST_FIELDS = ("content-digest", "repr-digest", "digest", "content-md5")


# --- paths --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainUpload:
    """Path for the whole image in one request; the token identifies the volume."""

    path: str
    form: bool = False
    """Whether the body is a multipart form that contains the image as a file."""
    asynchronous: bool = False
    """Whether the response is sent once the image is transferred and validated, before the volume is complete."""
    archive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TusUpload:
    """Path of a resumable upload into a volume, or of its creation if there is no id."""

    namespace: str
    claim: str
    id: str | None = None


_PLAIN = {
    plain.path: plain
    for version in ("/v1beta1", "/v1alpha1")
    for plain in (
        PlainUpload(path=f"{version}/upload"),
        PlainUpload(path=f"{version}/upload-async", asynchronous=True),
        PlainUpload(path=f"{version}/upload-form", form=True),
        PlainUpload(path=f"{version}/upload-form-async", form=True, asynchronous=True),
    )
} | {"/v1beta1/upload-archive": PlainUpload(path="/v1beta1/upload-archive", archive=True)}


def route(path: str) -> PlainUpload | TusUpload | None:
    """Return the upload at a path, None if there is none; the path is compared without decoding or normalization."""
    plain = _PLAIN.get(path)
    if plain is not None or not path.startswith(TUS_START):
        return plain
    parts = path.removeprefix(TUS_START).removesuffix("/").split("/")
    if len(parts) not in {2, 3} or not all(is_dns_subdomain(part) for part in parts[:2]):
        return None
    if len(parts) == 3 and not _UPLOAD_ID.fullmatch(parts[2]):
        return None
    return TusUpload(namespace=parts[0], claim=parts[1], id=parts[2] if len(parts) == 3 else None)


def tus_path(namespace: str, claim: str, upload: str | None = None) -> str:
    return f"{TUS_START}{namespace}/{claim}" + (f"/{upload}" if upload else "")


# --- fields -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadId:
    """Name of a resumable upload, which contains all facts needed after its upload server was lost."""

    nonce: str
    """32 hex digits."""
    length: int
    """Length of the whole content in bytes."""
    digest: Digest | None = None
    """Digest of the whole content."""

    def __str__(self) -> str:
        end = f"-{self.digest.algorithm}-{self.digest.hex}" if self.digest is not None else ""
        return f"{self.nonce}-{self.length}{end}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the name of an upload; raise `UploadUnknown` if it is malformed."""
        match = _UPLOAD_ID.fullmatch(text)
        if match is None or int(match[2]) > _MAX_LENGTH or (match[3] and len(match[4]) != HEX_LENGTH.get(match[3])):
            raise UploadUnknown("no upload has this name")
        return cls(nonce=match[1], length=int(match[2]), digest=Digest(match[3], match[4]) if match[3] else None)


def number(headers: Mapping[str, str], name: str) -> int | None:
    """Return a length or offset in bytes, None if the field is absent; raise `UploadMalformed` if it is invalid."""
    text = headers.get(name.lower())
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise UploadMalformed(f"{name} is not a number of bytes")
    return int(text)


def upload_metadata(text: str | None) -> dict[str, str]:
    """Return the names and decoded values of Upload-Metadata; raise `UploadMalformed` if it is invalid."""
    found: dict[str, str] = {}
    for pair in (text or "").split(","):
        name, _, value = pair.strip().partition(" ")
        if not name:
            continue
        try:
            found[name] = base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError) as error:
            raise UploadMalformed("Upload-Metadata is not: name, a space, its value in Base64, …") from error
    return found


def piece_checksum(text: str | None) -> Digest | None:
    """Return the digest in Upload-Checksum, of the bytes of one request; raise `UploadMalformed` if it is invalid."""
    if text is None:
        return None
    algorithm, _, value = text.strip().partition(" ")
    if algorithm not in TUS_ALGORITHMS:
        raise UploadMalformed(f"Upload-Checksum must use one of {', '.join(TUS_ALGORITHMS)}")
    return _of_base64(algorithm, value.strip(), "Upload-Checksum")


def content_digests(headers: Mapping[str, str]) -> tuple[Digest, ...]:
    """Return the digests in the request fields of RFC 9530, RFC 3230 and RFC 1864.

    Names in `headers` must be in lower case. Unknown algorithms are ignored.

    Raises:
        UploadMalformed: A field cannot be parsed; ignoring it would skip a check that the client asked for.
    """
    found: list[Digest] = []
    for field in _DIGEST_FIELDS:
        text = headers.get(field)
        if not text:
            continue
        if field == "content-md5":
            found.append(_of_base64("md5", text.strip(), "Content-MD5"))
            continue
        for pair in text.split(","):
            name, equals, value = pair.strip().partition("=")
            value = value.partition(";")[0].strip()
            if not equals:
                raise UploadMalformed(f"the field {field} cannot be read")
            algorithm = _RFC_NAMES.get(name.strip().lower())
            if field != "digest":
                if len(value) < 2 or not (value.startswith(":") and value.endswith(":")):
                    raise UploadMalformed(f"the field {field} must have the form algorithm=:Base64:")
                value = value[1:-1]
            if algorithm is not None:
                found.append(_of_base64(algorithm, value, field))
    return tuple(dict.fromkeys(found))


def declared_digest(headers: Mapping[str, str]) -> Digest | None:
    """Return the digest of a resumable upload's whole content, None if none is declared.

    It comes from ``checksum`` in the upload's metadata or from a field of the request that creates the upload.

    Raises:
        UploadMalformed: The metadata or a field cannot be parsed.
    """
    text = upload_metadata(headers.get("upload-metadata")).get("checksum")
    if text is None:
        given = content_digests({name: value for name, value in headers.items() if name in {"repr-digest", "digest"}})
        return max(given, key=lambda digest: len(digest.hex), default=None)
    try:
        return Digest.parse(text)
    except ChecksumInvalid as error:
        raise UploadMalformed(f"the metadata's checksum cannot be read: {error.what}") from error


def _of_base64(algorithm: str, text: str, field: str) -> Digest:
    try:
        value = base64.b64decode(text, validate=True).hex()
    except (binascii.Error, ValueError):
        value = ""
    if len(value) != HEX_LENGTH[algorithm]:
        raise UploadMalformed(f"{field} does not contain the Base64 of a digest by {algorithm}")
    return Digest(algorithm, value)


# --- responses ----------------------------------------------------------------------------------------------------


def status_of(error: CdiError) -> int:
    """Return the HTTP status that reports a failure to a client."""
    match error:
        case UploadMalformed():
            return error.status
        case TokenMisused():
            return 400
        case TokenInvalid():
            return 401
        case UploadUnknown():
            return 404
        case AlreadyUploaded() | UploadOffsetConflict() | Conflict():
            return 409
        case SourceStalled():
            return 408
        case UploadNotReady() | UploadUnderWay() | ScratchNeeded() | TargetBusy() | Interrupted():
            return 503
        case ImageError() | VerifyError() | TargetTooSmall() | TargetUnsuitable() | SourceError():
            return 400
        case NotFound():
            return 503
        case UsageError():
            return 400
        case _:
            return 503 if error.exit_status == 10 and error.retry is Retry.BACKOFF else 500


def status_of_code(code: str) -> int:
    """Return the HTTP status for a failure's code."""
    return status_of(by_code(code)(""))


def is_of_the_upload(error: CdiError) -> bool:
    """Return whether another upload may succeed, so that the server waits for one; other failures end the server."""
    mine = (ImageError, VerifyError, TargetTooSmall, TargetUnsuitable, SourceError, UploadError)
    return isinstance(error, mine)
