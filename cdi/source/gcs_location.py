"""Locations of Google Cloud Storage objects, and the URLs of the JSON and the XML API for them.

Follows the JSON API reference (objects: get), gsutil's ``gs://bucket/object#generation``, and the XML API's requests by
path. The XML API is used at a host that the URL itself names, as Google's client libraries do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlencode

from cdi.api.errors import SourceUrlInvalid
from cdi.http.url import Url

GOOGLE = "https://storage.googleapis.com"
_PATH_HOSTS = frozenset({"storage.googleapis.com", "storage.cloud.google.com", "commondatastorage.googleapis.com"})
_VIRTUAL_HOST = re.compile(r"(?P<bucket>.+)\.(?:storage|commondatastorage)\.googleapis\.com")
_API_PATH = re.compile(r"/(?:download/)?storage/v1/b/(?P<bucket>[^/]+)/o/(?P<object>[^/]+)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_GENERATION = re.compile(r"[0-9]{1,20}")
_SIGNED = frozenset({"x-goog-signature", "signature", "googleaccessid", "x-goog-credential"})
_MAX_NAME = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsLocation:
    """The location of one object, optionally of one generation."""

    bucket: str
    object: str
    generation: str | None = None
    endpoint: str = GOOGLE
    """The scheme, host and port of the API."""
    xml: bool = False
    """Whether the object is read over the XML API."""

    @classmethod
    def parse(cls, url: str, *, endpoint: str | None = None) -> Self:
        """Parse a ``gs://`` or http(s) URL; raise `SourceUrlInvalid`.

        `endpoint` takes precedence over the URL's own host; a host other than Google's is a compatible service.
        """
        text = url.strip()
        base = None if endpoint is None else Url.parse(endpoint).origin_text
        if text.lower().startswith("gs://"):
            name, mark, generation = text[len("gs://") :].rpartition("#")
            if not mark or not _GENERATION.fullmatch(generation):
                name, generation = text[len("gs://") :], ""
            return cls._make(unquote(name), text[:400], generation or None, base or GOOGLE)
        if not text.lower().startswith(("http://", "https://")):
            raise SourceUrlInvalid(
                "use the form gs://bucket/object or https://storage.googleapis.com/bucket/object",
                where=text.partition("?")[0][:400],
            )
        parsed = Url.parse(text)
        query = dict(parse_qsl(parsed.query, keep_blank_values=True))
        if any(name.lower() in _SIGNED for name in query):
            raise SourceUrlInvalid(
                "the URL is signed and needs no other credentials",
                where=parsed.redacted,
                remedy="use source http for it",
            )
        generation = query.get("generation", "")
        if generation and not _GENERATION.fullmatch(generation):
            raise SourceUrlInvalid("the generation is not a number", where=parsed.redacted)
        virtual = _VIRTUAL_HOST.fullmatch(parsed.host)
        google = parsed.host in _PATH_HOSTS or virtual is not None
        path = unquote(parsed.path)[1:]
        xml = not google and base is None
        if (api := _API_PATH.fullmatch(parsed.path)) is not None:
            path = f"{unquote(api['bucket'])}/{unquote(api['object'])}"
            xml = False
        elif virtual is not None:
            path = f"{virtual['bucket']}/{path}"
        origin = base or (GOOGLE if google else parsed.origin_text)
        return replace(cls._make(path, parsed.redacted, generation or None, origin), xml=xml)

    @classmethod
    def _make(cls, path: str, where: str, generation: str | None, endpoint: str) -> Self:
        bucket, _, name = path.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise SourceUrlInvalid(f"{bucket[:80]!r} is not a bucket name", where=where)
        if not name or name.endswith("/"):
            raise SourceUrlInvalid("the URL names a bucket or a folder, not an object", where=where)
        if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME or any(c in name for c in "\0\r\n"):
            raise SourceUrlInvalid("the object's name is longer than 1024 bytes, or has line breaks", where=where)
        return cls(bucket=bucket, object=name, generation=generation, endpoint=endpoint)

    @property
    def google(self) -> bool:
        return self.endpoint == GOOGLE

    @property
    def name(self) -> str:
        return self.object.rpartition("/")[2]

    @property
    def location(self) -> str:
        """The object's URL, for messages."""
        return f"{self.endpoint if self.xml else 'gs:/'}/{self.bucket}/{self.object}"

    def pinned(self, generation: str) -> str:
        """Return the ``gs://`` URL of one generation."""
        return f"gs://{self.bucket}/{quote(self.object, safe='/-_.~', errors='surrogatepass')}#{generation}"

    def object_url(self) -> str:
        """Return the object's URL in the XML API."""
        name = quote(self.object, safe="/", errors="surrogatepass")
        query = f"?{urlencode({'generation': self.generation})}" if self.generation else ""
        return f"{self.endpoint}/{self.bucket}/{name}{query}"

    def metadata_url(self) -> str:
        fields = "size,generation,md5Hash,contentEncoding,contentType"
        return self._url({"fields": fields, **({"generation": self.generation} if self.generation else {})})

    def media_url(self, generation: str | None) -> str:
        return self._url({"alt": "media", **({"generation": generation} if generation else {})})

    def beside(self, name: str) -> GcsLocation:
        """Return the object of that name under the same prefix."""
        prefix, slash, _ = self.object.rpartition("/")
        return replace(self, object=f"{prefix}{slash}{name}", generation=None)

    def _url(self, query: dict[str, str]) -> str:
        name = quote(self.object, safe="", errors="surrogatepass")
        return f"{self.endpoint}/storage/v1/b/{self.bucket}/o/{name}?{urlencode(query)}"
