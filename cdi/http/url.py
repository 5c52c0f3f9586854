"""Normalised HTTP URLs whose potentially secret parts are never shown.

Follows RFC 3986 for the parts and RFC 9110 section 4.2 for http and https. Spaces and non-ASCII characters in URLs are
percent-encoded, as every server and most proxies require.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from cdi.api.errors import SourceUrlInvalid

PORTS = {"http": 80, "https": 443}
MAX_LENGTH = 32 << 10
_SAFE = "/%:=&?~+!$,;'@()*[]-._|^"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIGNED = re.compile(
    r"(?:^|&)(?:x-(?:amz|goog|oss|cos|obs)-[a-z-]*|[a-z-]*signature|sig|awsaccesskeyid|googleaccessid|key-pair-id|"
    r"policy|hdnts|hdnea|[a-z_-]*token|sv|se|expires?|md5|hmac|auth|[a-z_-]*key)=",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """An http or https URL."""

    scheme: str
    host: str
    """The host in ASCII and lower case; an IPv6 address has no brackets."""
    port: int
    target: str
    """The path and query, percent-encoded, with a leading slash."""
    user: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an absolute URL; raise `SourceUrlInvalid`, whose text never contains the URL's user or query."""
        text = text.strip(" ")
        if len(text) > MAX_LENGTH:
            raise SourceUrlInvalid(f"the URL is longer than {MAX_LENGTH} bytes")
        if _CONTROL.search(text):
            raise SourceUrlInvalid("the URL contains control characters")
        try:
            parts = urlsplit(text)
            port = parts.port
            host = parts.hostname
        except ValueError as error:
            raise SourceUrlInvalid("the URL has no valid host or port") from error
        if parts.scheme not in PORTS:
            raise SourceUrlInvalid(f"the URL begins with {parts.scheme[:20]!r}, not with http:// or https://")
        if not host:
            raise SourceUrlInvalid("the URL names no host")
        if port == 0:
            raise SourceUrlInvalid("the URL's port is 0")
        return cls(
            scheme=parts.scheme,
            host=_host(host, bracketed="[" in parts.netloc.rpartition("@")[2]),
            port=PORTS[parts.scheme] if port is None else port,
            target=_target(parts),
            user=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
        )

    def join(self, reference: str) -> Url:
        """Resolve a Location header against this URL, without its user; raise `SourceUrlInvalid`."""
        # Header bytes are decoded as Latin-1, but servers that send non-ASCII bytes mean UTF-8.
        reference = reference.encode("latin-1", "replace").decode("utf-8", "replace")
        if len(reference) > MAX_LENGTH:
            raise SourceUrlInvalid("the server redirects to a URL that is too long", where=self.redacted)
        try:
            joined = urljoin(f"{self.origin_text}{self.target}", reference.strip())
        except ValueError as error:
            raise SourceUrlInvalid("the server redirects to an invalid URL", where=self.redacted) from error
        url = Url.parse(joined)
        return Url(scheme=url.scheme, host=url.host, port=url.port, target=url.target)

    @property
    def origin(self) -> tuple[str, str, int]:
        """The scheme, host and port; credentials are not sent to another origin (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The Host header: the host, with the port unless it is the default one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if PORTS[self.scheme] == self.port else f"{host}:{self.port}"

    @property
    def origin_text(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def redacted(self) -> str:
        """The URL without user and query, for messages."""
        text = f"{self.origin_text}{self.path}"
        return text if len(text) <= 400 else f"{text[:397]}..."

    @property
    def text(self) -> str:
        """The whole URL without the user; it may contain a signature."""
        return f"{self.origin_text}{self.target}"

    @property
    def name(self) -> str | None:
        """The last part of the path, decoded; None for a directory."""
        name = unquote(self.path.rpartition("/")[2])
        return None if not name or _CONTROL.search(name) else name

    @property
    def is_presigned(self) -> bool:
        """True if the query contains a signature or token, so that it is valid for this path only."""
        return _SIGNED.search(self.query) is not None

    def with_name(self, name: str) -> Url:
        """Return the URL of the file `name` in the same directory, without this URL's query."""
        directory = self.path.rpartition("/")[0]
        return Url(
            scheme=self.scheme,
            host=self.host,
            port=self.port,
            target=f"{directory}/{quote(name, safe='')}",
            user=self.user,
            password=self.password,
        )


def _host(host: str, *, bracketed: bool) -> str:
    if bracketed:
        address, percent, zone = host.partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError as error:
            raise SourceUrlInvalid("the URL's host is not a valid IPv6 address") from error
        if percent and not re.fullmatch(r"[A-Za-z0-9_.-]+", zone.removeprefix("25")):
            raise SourceUrlInvalid("the URL's IPv6 zone is invalid")
        return f"{address}%{zone.removeprefix('25')}" if percent else address
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise SourceUrlInvalid("the URL's host is not a valid international domain name") from error
    if not _HOST.fullmatch(host) or len(host) > 255 or any(len(label) > 63 for label in host.split(".")):
        raise SourceUrlInvalid(f"the URL's host {host[:80]!r} is not a valid name")
    return host.lower()


def _target(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe=_SAFE)
    return f"{path}?{quote(parts.query, safe=_SAFE)}" if parts.query else path
