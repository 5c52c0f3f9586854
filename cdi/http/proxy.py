"""Selection of the proxy for a request.

Each field of the job's settings overrides the environment's ``http_proxy``, ``https_proxy`` and ``no_proxy`` (lower
case before upper). ``no_proxy`` has the syntax of Go's httpproxy, which clusters are configured for: ``*``; addresses;
CIDRs; ``example.com`` with its subdomains; ``.example.com`` or ``*.example.com`` for subdomains only; each with an
optional port.
"""

from __future__ import annotations

import ipaddress
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cdi.api.errors import SourceUrlInvalid
from cdi.api.job import Proxy
from cdi.http.url import Url

_REMEDY = "correct the proxy settings (importProxy, or http_proxy and https_proxy)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyServer:
    """An HTTP proxy, reached over TCP or TLS."""

    url: Url

    @property
    def authorization(self) -> str | None:
        """The value of Proxy-Authorization; None without a user."""
        if self.url.user is None:
            return None
        return f"Basic {b64encode(f'{self.url.user}:{self.url.password or str()}'.encode()).decode('ascii')}"

    @property
    def label(self) -> str:
        """The host and port, for messages."""
        return f"{self.url.host}:{self.url.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """The proxy settings, read once."""

    http: ProxyServer | None = None
    https: ProxyServer | None = None
    no_proxy: str = ""
    loopback: bool = True
    """Whether requests to loopback hosts use a proxy too: only if the job names one, not the environment."""

    @classmethod
    def make(cls, proxy: Proxy, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings; raise `SourceUrlInvalid` for an unusable proxy URL."""
        env = os.environ if environment is None else environment

        def setting(own: str | None, name: str) -> str:
            return own or env.get(name) or env.get(name.upper()) or ""

        return cls(
            http=_server(setting(proxy.http, "http_proxy")),
            https=_server(setting(proxy.https, "https_proxy")),
            no_proxy=setting(proxy.no_proxy, "no_proxy"),
            loopback=bool(proxy.http or proxy.https),
        )

    def for_url(self, url: Url) -> ProxyServer | None:
        server = self.https if url.scheme == "https" else self.http
        if server is None or matches_no_proxy(self.no_proxy, url.host, url.port):
            return None
        return None if not self.loopback and is_loopback(url.host) else server


def _server(text: str) -> ProxyServer | None:
    text = text.strip()
    if not text:
        return None
    if "://" not in text:
        text = f"http://{text}"
    try:
        return ProxyServer(url=Url.parse(text))
    except SourceUrlInvalid as error:
        what = error.what.replace("the URL", "the proxy's URL", 1)
        raise SourceUrlInvalid(what, where="proxy", remedy=_REMEDY) from error


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by its address or as ``localhost``."""
    address = _address(host)
    return address.is_loopback if address is not None else host.rstrip(".") == "localhost"


def matches_no_proxy(no_proxy: str, host: str, port: int) -> bool:
    """Return whether `no_proxy` excludes the host and port from proxying."""
    host = host.rstrip(".").lower()
    address = _address(host)
    for raw in re.split(r"[,\s]+", no_proxy):
        entry = raw.lower()
        if entry == "*":
            return True
        if not entry:
            continue
        if "/" in entry:
            if address is not None and _in_network(address, entry):
                return True
            continue
        name, wanted = _split_port(entry)
        if wanted is not None and wanted != port:
            continue
        if address is not None:
            if _address(name) == address:
                return True
            continue
        name = name.rstrip(".").removeprefix("*")
        if host.endswith(name if name.startswith(".") else f".{name}") or host == name:
            return True
    return False


def _in_network(address: ipaddress.IPv4Address | ipaddress.IPv6Address, text: str) -> bool:
    try:
        return address in ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False


def _split_port(entry: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?|([^:]+):(\d{1,5})", entry)
    if match is None:
        return entry, None
    port = match[2] or match[4]
    return match[1] or match[3], None if port is None else int(port)
