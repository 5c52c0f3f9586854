"""Locations of S3 objects: the parsing of S3 URLs, and the URLs of requests.

Amazon's hosts are recognised in all their forms (virtual-hosted and path-style, dual-stack, FIPS, China, interface
endpoints, access points). Any other host is an S3-compatible service with the bucket as the first part of the path. A
key may be percent-encoded or not; in requests everything but unreserved characters is encoded, as Signature Version 4
requires.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, Self
from urllib.parse import parse_qsl, quote, unquote

from cdi.api.errors import SourceUrlInvalid
from cdi.http.url import Url

Addressing = Literal["auto", "path", "virtual"]

_REGION = r"[a-z]{2,4}(?:-[a-z0-9]+){1,4}"
_DOMAIN = r"amazonaws\.com(?:\.cn)?|amazonaws\.eu"
_AWS = re.compile(
    rf"(?:(?P<bucket>.+)\.)?s3(?P<fips>-fips)?(?P<dual>\.dualstack)?(?:-external-1|[.-](?P<region>{_REGION}))?\.(?P<domain>{_DOMAIN})"
)
_ACCELERATE = re.compile(rf"(?P<bucket>.+)\.s3-accelerate(?:\.dualstack)?\.(?:{_DOMAIN})")
_ACCESS_POINT = re.compile(
    rf"(?P<bucket>[a-z0-9-]+)\.s3-accesspoint(?:-fips)?(?:\.dualstack)?\.(?P<region>{_REGION})\.(?:{_DOMAIN})"
)
_WEBSITE = re.compile(rf".+\.s3-website[.-].*\.(?:{_DOMAIN})")
# For example vpce-….s3.REGION.vpce.amazonaws.com, s3.fr-par.scw.cloud and s3.us-west-004.backblazeb2.com.
_REGION_HINT = re.compile(rf"(?:^|\.)s3[.-](?P<region>{_REGION})\.")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_MAX_KEY = 1024
DEFAULT_REGION = "us-east-1"
_PRESIGNED = ("x-amz-signature", "signature", "x-amz-credential")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """The location of one object."""

    bucket: str
    key: str
    """The key, percent-decoded."""
    version: str | None = None
    region: str | None = None
    """The region, if the URL contains it."""
    endpoint: str | None = None
    """The scheme, host and port of a fixed service; None for Amazon's regional hosts."""
    virtual: bool = False
    """Whether the endpoint's host already contains the bucket."""
    infix: str = ""
    """The part ``-fips``, ``.dualstack`` or both of Amazon's hosts."""
    domain: str = "amazonaws.com"

    @classmethod
    def parse(cls, url: str, *, endpoint: str | None = None) -> Self:
        """Parse ``s3://bucket/key`` or an http(s) URL; raise `SourceUrlInvalid`.

        `endpoint` is the URL of a service other than Amazon's; it takes precedence over the URL's own host.
        """
        scheme = url.strip().partition("://")[0].lower()
        if scheme == "s3":
            return cls._plain(url.strip(), endpoint)
        if scheme not in ("http", "https"):
            raise SourceUrlInvalid("use the form s3://bucket/key or https://endpoint/bucket/key", where=_shown(url))
        parsed = Url.parse(url)
        version = _version(parsed.query, parsed.redacted)
        path = unquote(parsed.path)[1:]
        host = parsed.host.rstrip(".")
        if endpoint is not None:
            base = Url.parse(endpoint)
            if host.endswith(f".{base.host}"):
                path = f"{host.removesuffix(f'.{base.host}')}/{path}"
            return cls._object(
                path, parsed.redacted, version=version, endpoint=_origin(base), region=_region_from_host(base.host)
            )
        if _WEBSITE.fullmatch(host):
            raise SourceUrlInvalid(
                "the URL is a bucket's website endpoint, not its S3 API",
                where=parsed.redacted,
                remedy="use source http for it",
            )
        for pattern in (_ACCELERATE, _ACCESS_POINT):
            if (match := pattern.fullmatch(host)) is not None:
                region = match.groupdict().get("region")
                endpoint = parsed.origin_text
                found = cls(
                    bucket=match["bucket"], key=path, version=version, region=region, endpoint=endpoint, virtual=True
                )
                return found._checked(parsed.redacted)
        match = _AWS.fullmatch(host)
        if match is None or ".vpce" in f".{host}":
            return cls._object(
                path, parsed.redacted, version=version, endpoint=parsed.origin_text, region=_region_from_host(host)
            )
        infix = (match["fips"] or "") + (match["dual"] or "")
        region = match["region"]
        if match["bucket"]:
            path = f"{match['bucket']}/{path}"
        found = cls._object(path, parsed.redacted, version=version, region=region)
        return replace(found, infix=infix, domain=match["domain"])

    @classmethod
    def _plain(cls, url: str, endpoint: str | None) -> Self:
        rest = url[len("s3://") :]
        # A question mark may be part of a key, so only a version is parsed as a query.
        before, mark, query = rest.rpartition("?")
        version = None
        if mark and re.fullmatch(r"versionId=[^&]{1,1024}", query):
            rest, version = before, unquote(query.partition("=")[2])
        base = None if endpoint is None else Url.parse(endpoint)
        return cls._object(
            unquote(rest),
            _shown(url),
            version=version,
            endpoint=None if base is None else _origin(base),
            region=None if base is None else _region_from_host(base.host),
        )

    @classmethod
    def _object(
        cls, path: str, where: str, *, version: str | None, region: str | None = None, endpoint: str | None = None
    ) -> Self:
        bucket, _, key = path.partition("/")
        found = cls(bucket=bucket, key=key, version=version, region=region, endpoint=endpoint)
        return found._checked(where)

    def _checked(self, where: str) -> Self:
        if not _BUCKET.fullmatch(self.bucket):
            raise SourceUrlInvalid(f"{self.bucket[:80]!r} is not a bucket name", where=where)
        if not self.key or self.key.endswith("/"):
            raise SourceUrlInvalid("the URL names a bucket or a folder, not an object", where=where)
        if len(self.key.encode("utf-8", "surrogatepass")) > _MAX_KEY or "\0" in self.key:
            raise SourceUrlInvalid("the object's key is longer than 1024 bytes, or has a NUL", where=where)
        return self

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def location(self) -> str:
        """The object's URL, for messages."""
        if self.endpoint is None:
            return f"s3://{self.bucket}/{self.key}"
        return f"{self.endpoint}/{self.key}" if self.virtual else f"{self.endpoint}/{self.bucket}/{self.key}"

    def url(self, region: str, addressing: Addressing) -> str:
        """Return the URL for requests, with the version and without a signature."""
        key = quote(self.key, safe="-_.~/", errors="surrogatepass")
        query = "" if self.version is None else f"?versionId={quote(self.version, safe='-_.~')}"
        if self.virtual:
            return f"{self.endpoint}/{key}{query}"
        if self.endpoint is None:
            base = f"https://s3{self.infix}.{region}.{self.domain}"
            # A dot in a bucket's name adds a label that Amazon's wildcard certificate does not cover.
            virtual = addressing != "path" and _DNS_BUCKET.fullmatch(self.bucket) is not None
        else:
            base = self.endpoint
            virtual = addressing == "virtual"
        if virtual:
            scheme, _, host = base.partition("://")
            return f"{scheme}://{self.bucket}.{host}/{key}{query}"
        return f"{base}/{self.bucket}/{key}{query}"

    def beside(self, name: str) -> S3Location:
        """Return the object of that name under the same prefix."""
        prefix, slash, _ = self.key.rpartition("/")
        return replace(self, key=f"{prefix}{slash}{name}", version=None)


def _origin(url: Url) -> str | None:
    """Return the origin; None for Amazon's own hosts, which are derived from the region."""
    return url.origin_text if _AWS.fullmatch(url.host) is None else None


def _region_from_host(host: str) -> str | None:
    match = _REGION_HINT.search(host)
    return None if match is None else match["region"]


def _version(query: str, where: str) -> str | None:
    fields = dict(parse_qsl(query, keep_blank_values=True))
    if any(name.lower() in _PRESIGNED for name in fields):
        raise SourceUrlInvalid(
            "the URL is presigned: it needs no credentials and must not be signed again",
            where=where,
            remedy="use source http for it",
        )
    return fields.get("versionId") or None


def _shown(url: str) -> str:
    # Parsing and reassembling would change the text: s3:///x would become s3:/x.
    return url.partition("#")[0].partition("?")[0][:400] if url.isprintable() else "s3 url"
