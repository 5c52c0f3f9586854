"""HTTP URLs as this package uses them: normalised once, and never shown with what may be a secret.

RFC 3986 for the parts, RFC 9110 section 4.2 for http and https.  Users paste URLs with spaces and umlauts; those are
percent-encoded, since every server and most proxies want them so.
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
    """One http or https URL."""

    scheme: str
    host: str
    """ASCII, lower case; an IPv6 address without its brackets."""
    port: int
    target: str
    """Path and query, percent-encoded, beginning with a slash."""
    user: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an absolute URL; raises `SourceUrlInvalid`, whose text never holds the URL's user or query."""
        text = text.strip(" ")
        if len(text) > MAX_LENGTH:
            raise SourceUrlInvalid(f"the URL is longer than {MAX_LENGTH} bytes")
        if _CONTROL.search(text):
            raise SourceUrlInvalid("the URL holds control characters")
        try:
            parts = urlsplit(text)
            port = parts.port
            host = parts.hostname
        except ValueError as error:
            raise SourceUrlInvalid("the URL has no readable host or port") from error
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

    def redirected(self, reference: str) -> Url:
        """Where a Location header leads from here; a user in it is ignored.  Raises `SourceUrlInvalid`."""
        # Header bytes arrive as Latin-1; servers that put UTF-8 there mean UTF-8.
        reference = reference.encode("latin-1", "replace").decode("utf-8", "replace")
        if len(reference) > MAX_LENGTH:
            raise SourceUrlInvalid("the server redirects to a URL that is too long", where=self.location)
        try:
            joined = urljoin(f"{self.origin_text}{self.target}", reference.strip())
        except ValueError as error:
            raise SourceUrlInvalid("the server redirects to an unreadable URL", where=self.location) from error
        url = Url.parse(joined)
        return Url(scheme=url.scheme, host=url.host, port=url.port, target=url.target)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: the border that credentials do not cross (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """For the Host header: the port only where it is not the scheme's own."""
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
    def location(self) -> str:
        """For messages: neither user nor query."""
        text = f"{self.origin_text}{self.path}"
        return text if len(text) <= 400 else f"{text[:397]}..."

    @property
    def text(self) -> str:
        """The whole URL without the user; it may hold a signature."""
        return f"{self.origin_text}{self.target}"

    @property
    def name(self) -> str | None:
        """The last part of the path, decoded; None for a directory."""
        name = unquote(self.path.rpartition("/")[2])
        return None if not name or _CONTROL.search(name) else name

    @property
    def signed(self) -> bool:
        """The query carries a signature or token, so that no other path can be asked for with it."""
        return _SIGNED.search(self.query) is not None

    def beside(self, name: str) -> Url:
        """The file `name` in the same directory, without this one's query."""
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
            raise SourceUrlInvalid("the URL's host is no IPv6 address") from error
        if percent and not re.fullmatch(r"[A-Za-z0-9_.-]+", zone.removeprefix("25")):
            raise SourceUrlInvalid("the URL's IPv6 zone cannot be read")
        return f"{address}%{zone.removeprefix('25')}" if percent else address
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise SourceUrlInvalid("the URL's host is no valid international name") from error
    if not _HOST.fullmatch(host) or len(host) > 255 or any(len(label) > 63 for label in host.split(".")):
        raise SourceUrlInvalid(f"the URL's host {host[:80]!r} is not a valid name")
    return host.lower()


def _target(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe=_SAFE)
    return f"{path}?{quote(parts.query, safe=_SAFE)}" if parts.query else path
