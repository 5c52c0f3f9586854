"""Objects in S3 and in S3-compatible services.

Bytes are read with `HttpSource`, and each request is signed separately. HEAD is never sent, because read-only policies
and gateways reject it. The region may be unknown or wrong; it is corrected once from the service's response.

Expected digests are the SHA-256 or SHA-1 that the service keeps for the whole object. Composite checksums of parts,
CRCs and the ETag are not used: an ETag is an MD5 only for some kinds of upload and encryption, and a response does not
show which.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from cdi.api.digest import HEX_LENGTH, Digest
from cdi.api.errors import (
    CdiError,
    SourceChanged,
    SourceError,
    SourceForbidden,
    SourceNotFound,
    SourceRefused,
    SourceUnauthorized,
    SourceUnavailable,
)
from cdi.api.importer_messages import no_s3_object
from cdi.api.job import S3SourceSpec
from cdi.api.printable import printable
from cdi.http import headers as fields
from cdi.http.http_object import Headers, HttpRequest
from cdi.http.message import WHOLE, Response
from cdi.http.transport import Transport
from cdi.http.url import Url
from cdi.source.base import SourceFacts
from cdi.source.http import HttpSource
from cdi.source.s3_credentials import CredentialProvider, identity_for
from cdi.source.s3_location import DEFAULT_REGION, Addressing, S3Location
from cdi.source.s3_sigv4 import AwsCredentials, sign

_CODE = re.compile(rb"<Code>([A-Za-z0-9._-]{1,80})</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,400})</Message>")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_BODY_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
_SERVER_TIME = re.compile(rb"<ServerTime>([0-9T:.-]{10,40})Z?</ServerTime>")
_EXPECTED_REGION = re.compile(rb"expecting '([a-z0-9-]{1,40})'")
_CHECKSUMS = (("x-amz-checksum-sha256", "sha256"), ("x-amz-checksum-sha1", "sha1"))
_MAX_VERSION = 1024
_MAX_SKEW = timedelta(days=3650)

_NO_KEY = "check the bucket and the key; keys differ by upper and lower case"
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "InvalidBucketName", "NoSuchAccessPoint"})
_CREDENTIAL_REMEDIES = {
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: correct secretKey",
    "InvalidAccessKeyId": "the service does not know the access key: correct accessKeyId, or the endpoint",
    "ExpiredToken": "the temporary credentials have expired: renew them",
    "ExpiredTokenException": "the temporary credentials have expired: renew them",
    "TokenRefreshRequired": "the temporary credentials have expired: renew them",
    "InvalidToken": "temporary credentials need their session token, and permanent ones must not have one",
    "InvalidClientTokenId": "the service does not know the access key: correct accessKeyId",
    "InvalidSecurity": "correct accessKeyId and secretKey",
    "UnauthorizedAccess": "correct accessKeyId and secretKey, or the endpoint: China and GovCloud have their own keys",
    "RequestTimeTooSkewed": "set this machine's clock",
}
_RETRYABLE_CODES = frozenset(
    {
        "Busy",
        "InternalError",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_WRONG_REGION_CODES = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "InvalidRegion",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)


def open_s3(spec: S3SourceSpec, stall_timeout: float) -> S3Source:
    """Open a source over one object, and look up credentials; no request is sent to S3 yet.

    `stall_timeout` is in seconds. Raises `SourceUrlInvalid`, `SourceCredentialsInvalid`, or `SourceUnreachable` (for a
    service that provides credentials).
    """
    endpoint = spec.endpoint
    if endpoint is None and spec.url.strip().lower().startswith("s3:"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    location = S3Location.parse(spec.url, endpoint=endpoint)
    identity = identity_for(spec)
    region = spec.region or location.region or identity.region or DEFAULT_REGION
    session = _Session(identity, region, spec.addressing)
    transport = Transport(tls=spec.tls, proxy=spec.proxy, stall_timeout=stall_timeout)
    return S3Source(S3Endpoint(location, session), transport=transport)


class _Session:
    """The state shared by the requests for a bucket's objects, including a corrected region and clock; thread-safe."""

    def __init__(self, identity: CredentialProvider, region: str, addressing: Addressing) -> None:
        self.identity = identity
        self.region = region
        self.addressing: Addressing = addressing
        self.skew = timedelta()
        self.lock = threading.Lock()
        self.corrected_region = False
        self.corrected_clock = False

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skew


class S3Endpoint:
    """An `HttpObject` for one object."""

    def __init__(self, location: S3Location, session: _Session) -> None:
        self._object = location
        self._session = session
        self._used = threading.local()
        self.location = location.location
        self.name: str | None = location.name
        self.digests: tuple[Digest, ...] = ()

    def request(self, headers: Mapping[str, str] | None = None) -> HttpRequest:
        """Return a request signed for the current time; `headers` (lower-case names) are signed too.

        Raises what the credential provider's `keys` raises, such as `SourceCredentialsInvalid`.
        """
        session = self._session
        keys = session.identity.keys()
        region = session.region
        self._used.keys, self._used.region, self._used.skew = keys, region, session.skew
        url = self._object.url(region, session.addressing)
        if keys is None:
            return HttpRequest(url=url, headers=tuple((headers or {}).items()))
        signed: Headers = sign(url, keys, region=region, now=session.now(), headers=headers)
        return HttpRequest(url=url, sensitive_headers=signed)

    def refresh_credentials(self, status: int) -> bool:  # noqa: ARG002  # part of the protocol; only changed state matters here
        """Return whether the region, the clock correction or the keys have changed since the request was signed."""
        used = self._used
        if used.region != self._session.region or used.skew != self._session.skew:
            return True
        before: AwsCredentials | None = used.keys
        return before is not None and self._session.identity.keys() != before

    def error_from_response(self, status: int, headers: Mapping[str, str], body: bytes) -> CdiError | None:
        """Return the error for S3's error document, and record the bucket's region and the service's time."""
        found = _CODE.search(body)
        code = found[1].decode("ascii") if found else ""
        self._learn_region_and_clock(code, status, headers, body)
        said = _MESSAGE.search(body)
        text = f"S3 says {code}" if code else f"S3 answered {status}"
        if said is not None:
            message = printable(said[1].decode("utf-8", "replace"), 200)
            text += f": {message.strip().rstrip('.')}"
        error = self._error_for_code(status, code, text, headers)
        if error is not None and code:
            bucket, key = self._object.bucket, self._object.key
            said_plainly = text.partition(": ")[2] or code
            error.with_upstream(no_s3_object(bucket, key, code, said_plainly))
        return error

    def _error_for_code(self, status: int, code: str, text: str, headers: Mapping[str, str]) -> CdiError | None:
        where = self.location
        if code in _MISSING or (code == "MethodNotAllowed" and headers.get("x-amz-delete-marker") == "true"):
            return SourceNotFound(text, where=where, remedy=_NO_KEY)
        if code in _CREDENTIAL_REMEDIES:
            return SourceUnauthorized(text, where=where, remedy=_CREDENTIAL_REMEDIES[code])
        if code in {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden"} or (status == 403 and not code):
            return SourceForbidden(text, where=where, remedy=self._permission())
        if code == "InvalidObjectState":
            return SourceForbidden(text, where=where, remedy="the object is archived: restore it first")
        if code in _RETRYABLE_CODES or status in (429, 503):
            return SourceUnavailable(
                text, where=where, retry_after=fields.parse_retry_after(headers.get("retry-after"))
            )
        if code in _WRONG_REGION_CODES or status == 301:
            return SourceRefused(text, where=where, remedy="set the bucket's region, or use its region's endpoint")
        if code == "PreconditionFailed":
            return SourceChanged(text, where=where)
        return None

    def pinned(self, version: str) -> str:
        """Return the URL of one version of the object."""
        return f"{quote(self.location, safe=':/-_.~')}?versionId={quote(version, safe='-_.~')}"

    def sibling(self, name: str) -> S3Endpoint | None:
        return S3Endpoint(self._object.beside(name), self._session)

    def _permission(self) -> str:
        if getattr(self._used, "keys", None) is None:
            return (
                "no credentials were found, and the anonymous request failed: give a secret, or make the object public"
            )
        return "allow s3:GetObject on this key; S3 reports a missing key like this if listing the bucket is not allowed"

    def _learn_region_and_clock(self, code: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        session = self._session
        with session.lock:
            if code == "RequestTimeTooSkewed" and not session.corrected_clock:
                session.corrected_clock = True
                session.skew = _skew(headers, body)
            if status not in (301, 307, 400, 403) or session.corrected_region:
                return
            region = headers.get("x-amz-bucket-region", "")
            in_body = _EXPECTED_REGION.search(body) or _BODY_REGION.search(body)
            if code in _WRONG_REGION_CODES and not region and in_body is not None:
                region = in_body[1].decode("ascii")
            if _REGION.fullmatch(region) and region != session.region:
                session.corrected_region = True
                session.region = region


class S3Source(HttpSource):
    """An `HttpSource` that also asks S3 for the checksum that it keeps."""

    def __init__(self, endpoint: S3Endpoint, *, transport: Transport) -> None:
        super().__init__(endpoint, transport=transport)
        self._s3 = endpoint
        self._asking = threading.Lock()
        self._promised: tuple[Digest, ...] | None = None

    def probe(self) -> SourceFacts:
        """Return the facts of `HttpSource.probe`, with the object's checksum if the service has one."""
        facts = super().probe()
        with self._asking:
            if self._promised is None:
                self._promised = self._checksum() if facts.length else ()
            return replace(facts, digests=self._promised)

    def sibling(self, name: str) -> S3Source | None:
        endpoint = self._s3.sibling(name)
        return None if endpoint is None else S3Source(endpoint, transport=self.transport)

    def _identity(self, response: Response) -> tuple[str | None, str | None]:
        """Return the ETag together with the object's version, and the URL of that version."""
        tag, _ = super()._identity(response)
        version = response.headers.get("x-amz-version-id", "").strip()
        # Objects that were stored before versioning was enabled all have the version "null".
        if version in ("", "null") or not version.isprintable() or len(version) > _MAX_VERSION:
            return tag, None
        return f"{tag or ''} version {version}".lstrip(), self._s3.pinned(version)

    def _checksum(self) -> tuple[Digest, ...]:
        """Request the whole object, but read only the head, because range responses have no checksum of the whole.

        This requires no more than read permission. Errors of the request are ignored, because reading the bytes will
        report them.
        """
        request = self._s3.request({"x-amz-checksum-mode": "ENABLED"})
        try:
            response = self.transport.send(
                "GET",
                Url.parse(request.url),
                (*request.headers, *request.sensitive_headers, ("Accept-Encoding", "identity")),
                self._cancel,
            )
        except SourceError:
            return ()
        headers = {name.lower(): value for name, value in response.headers.items()}
        self.transport.discard_response(response)
        return checksum_from_headers(headers) if response.status in WHOLE else ()


def checksum_from_headers(headers: Mapping[str, str]) -> tuple[Digest, ...]:
    """Return the digest of the whole object from a response's headers (lower-case names)."""
    if headers.get("x-amz-checksum-type", "FULL_OBJECT").strip().upper() != "FULL_OBJECT":
        return ()
    for name, algorithm in _CHECKSUMS:
        # A composite value ends in "-" and the number of parts, so it is not valid base64.
        try:
            raw = base64.b64decode(headers.get(name, "").strip(), validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(raw) * 2 == HEX_LENGTH[algorithm]:
            return (Digest(algorithm, raw.hex()),)
    return ()


def _skew(headers: Mapping[str, str], body: bytes) -> timedelta:
    """Return how far the service's clock is ahead of the local one; zero if unknown."""
    found = _SERVER_TIME.search(body)
    try:
        if found is not None:
            there = datetime.fromisoformat(found[1].decode("ascii")).replace(tzinfo=UTC)
        else:
            there = parsedate_to_datetime(headers.get("date", "")).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return timedelta()
    skew = there - datetime.now(UTC)
    return skew if abs(skew) < _MAX_SKEW else timedelta()
