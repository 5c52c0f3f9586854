"""Objects in Google Cloud Storage, over its JSON API, or over the XML API of a host that the URL names.

In the JSON API, the metadata are read first. They contain the generation, which pins the content for every later
request, and the MD5, which composed objects lack. An object stored with ``Content-Encoding: gzip`` is requested in its
stored form, because decompressed on the fly it has neither a length nor ranges; the engine detects gzip from the
content.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    Interrupted,
    SourceChanged,
    SourceForbidden,
    SourceNotFound,
    SourceProtocolError,
    SourceUnauthorized,
)
from cdi.api.importer_messages import NO_GCS_OBJECT
from cdi.api.job import GcsSourceSpec
from cdi.api.json_document import parse_json
from cdi.api.printable import printable
from cdi.http.http_object import HttpRequest
from cdi.http.transport import Transport
from cdi.source.base import Reader, SourceFacts, read_all
from cdi.source.gcs_location import GcsLocation
from cdi.source.http import HttpSource

if TYPE_CHECKING:
    from cdi.source.gcs_credentials import AccessTokenProvider

_METADATA_LIMIT = 256 << 10


def open_gcs(spec: GcsSourceSpec, stall_timeout: float) -> GcsSource:
    """Open a source over one object; no request is sent yet.

    `stall_timeout` is in seconds. Raises `SourceUrlInvalid` or `SourceCredentialsInvalid`.
    """
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    configured = spec.endpoint or emulator or None
    location = GcsLocation.parse(spec.url, endpoint=configured)
    transport = Transport(tls=spec.tls, proxy=spec.proxy, stall_timeout=stall_timeout)
    return GcsSource(location, _tokens(spec, location, emulator=bool(emulator)), transport)


def _tokens(spec: GcsSourceSpec, location: GcsLocation, *, emulator: bool) -> AccessTokenProvider | None:
    path = spec.credentials.service_account_file
    # Credentials from the environment are sent to Google or to the configured endpoint, but not to a host in the URL.
    trusted = location.google or spec.endpoint is not None
    if path is None and (emulator or not trusted or not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")):
        return None
    # google-auth takes 0.17 s of CPU time to import, which is avoided for public objects.
    from cdi.source.gcs_credentials import AccessTokenProvider

    if path is not None:
        return AccessTokenProvider.from_file(path, tls=spec.tls, proxy=spec.proxy)
    return AccessTokenProvider.from_environment(tls=spec.tls, proxy=spec.proxy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metadata:
    generation: str | None
    size: int | None
    md5: Digest | None
    gzip: bool
    content_type: str | None


class _Endpoint:
    """An `HttpObject` for one URL of an API."""

    def __init__(
        self, url: str, location: GcsLocation, tokens: AccessTokenProvider | None, *, gzip: bool = False
    ) -> None:
        self._url = url
        self._object = location
        self._tokens = tokens
        self._used = threading.local()
        self._headers = (("Accept-Encoding", "gzip"),) if gzip else ()
        self.location = location.location
        self.name: str | None = location.name
        self.digests: tuple[Digest, ...] = ()

    def request(self) -> HttpRequest:
        """Return the request; raise `SourceUnauthorized` or `SourceUnreachable` if no token is available."""
        if self._tokens is None:
            return HttpRequest(url=self._url, headers=self._headers)
        self._used.value = self._tokens.get()
        return HttpRequest(
            url=self._url, headers=self._headers, sensitive_headers=(("Authorization", self._used.value),)
        )

    def refresh_credentials(self, status: int) -> bool:
        if status != 401 or self._tokens is None:
            return False
        used = getattr(self._used, "value", None)
        return self._tokens.get(instead_of=used) != used

    def error_from_response(self, status: int, headers: Mapping[str, str], body: bytes) -> CdiError | None:
        """Return the error for the JSON API's error document."""
        del headers
        said = _message(body)
        server = self._object.endpoint if self._object.xml else "Google"
        text = f"{server} answered {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            if self._tokens is None:
                remedy = "the request was anonymous: give a secret with credentials.json, or make the object public"
                return SourceUnauthorized(text, where=self.location, remedy=remedy)
            if status == 401:
                return SourceUnauthorized(text, where=self.location)
            remedy = "give the service account the role roles/storage.objectViewer on the bucket"
            return SourceForbidden(text, where=self.location, remedy=remedy)
        if status in (404, 410):
            error = SourceNotFound(text, where=self.location, remedy="check the bucket and the object's name")
            return error.with_upstream(NO_GCS_OBJECT)
        return None

    def sibling(self, name: str) -> None:
        """Return None: the source creates siblings, because it reads their metadata first."""
        del name


class _MediaEndpoint(_Endpoint):
    def error_from_response(self, status: int, headers: Mapping[str, str], body: bytes) -> CdiError | None:
        if status in (404, 410):
            # The metadata for this generation were read just before.
            return SourceChanged("the object was replaced or deleted while it was being fetched", where=self.location)
        return super().error_from_response(status, headers, body)


class GcsSource:
    """A `cdi.source.base.Source` over one object."""

    def __init__(self, location: GcsLocation, tokens: AccessTokenProvider | None, transport: Transport) -> None:
        self._object = location
        self._tokens = tokens
        self._transport = transport
        self._transport.acquire()
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._sources: list[HttpSource] = []
        self._probed: tuple[HttpSource, SourceFacts] | None = None
        self._closed = False

    def probe(self) -> SourceFacts:
        """Return the facts from the metadata and the first byte, which are cached; raise a `SourceError`."""
        return self._resolved()[1]

    def open(self, offset: int = 0, length: int | None = None) -> Reader:
        return self._resolved()[0].open(offset, length)

    def sibling(self, name: str) -> GcsSource | None:
        return GcsSource(self._object.beside(name), self._tokens, self._transport)

    def close(self) -> None:
        """Close the source and interrupt all its operations in any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            sources, self._sources = self._sources, []
        for source in sources:
            source.close()
        self._transport.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _resolved(self) -> tuple[HttpSource, SourceFacts]:
        with self._probing:
            if self._probed is None:
                self._probed = self._probe()
            return self._probed

    def _http(self, endpoint: _Endpoint) -> HttpSource:
        """Return a source that `close` also closes."""
        source = HttpSource(endpoint, transport=self._transport)
        with self._lock:
            if not self._closed:
                self._sources.append(source)
                return source
        source.close()
        raise Interrupted("the source is closed", where=self._object.location)

    def _probe(self) -> tuple[HttpSource, SourceFacts]:
        if self._object.xml:
            found = self._http(_Endpoint(self._object.object_url(), self._object, self._tokens))
            return found, found.probe()
        metadata = self._metadata()
        url = self._object.media_url(metadata.generation)
        media = self._http(_MediaEndpoint(url, self._object, self._tokens, gzip=metadata.gzip))
        facts = media.probe()
        if metadata.size is not None and facts.length not in (None, metadata.size):
            raise SourceProtocolError(
                f"the object has {metadata.size} bytes by its metadata and {facts.length} by its content",
                where=facts.location,
            )
        # The MD5 covers the stored bytes, so it does not apply if the service decompressed them despite the request.
        stored = facts.length == metadata.size
        return media, replace(
            facts,
            digests=(metadata.md5,) if metadata.md5 is not None and stored else (),
            validator=metadata.generation or facts.validator,
            identity=metadata.generation or facts.identity,
            pinned=None if metadata.generation is None else self._object.pinned(metadata.generation),
            content_type=metadata.content_type or facts.content_type,
        )

    def _metadata(self) -> _Metadata:
        endpoint = _Endpoint(self._object.metadata_url(), self._object, self._tokens)
        body = read_all(self._http(endpoint), _METADATA_LIMIT)
        try:
            document = parse_json(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise SourceProtocolError("the object's metadata are not a JSON object", where=self._object.location)
        return _read_metadata(document)


def _read_metadata(document: dict[str, Any]) -> _Metadata:
    def text(name: str) -> str:
        value = document.get(name)
        # 64-bit numbers are strings in Google's JSON, but emulators sometimes send numbers.
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    def number(name: str) -> str | None:
        return text(name) if re.fullmatch(r"[0-9]{1,20}", text(name)) else None

    md5 = None
    try:
        raw = base64.b64decode(text("md5Hash"), validate=True)
        md5 = Digest("md5", raw.hex()) if len(raw) == 16 else None
    except (binascii.Error, ValueError):
        pass
    size = number("size")
    return _Metadata(
        generation=number("generation"),
        size=None if size is None else int(size),
        md5=md5,
        gzip="gzip" in text("contentEncoding").lower(),
        content_type=text("contentType")[:128] or None,
    )


def _message(body: bytes) -> str:
    try:
        document = parse_json(body)
        message = document["error"]["message"]
    except (ValueError, KeyError, TypeError):
        # Media responses contain plain text.
        message = body.decode("utf-8", "replace") if not body.lstrip().startswith((b"<", b"{")) else ""
    shown = printable(message, 300) if isinstance(message, str) else ""
    return shown.strip().rstrip(".")
