"""The interface between a kind of source and the shared HTTP code.

S3, GCS and registries are HTTP services with their own addressing and authorization. Each provides an `HttpObject`, and
`cdi.source.http.HttpSource` implements the rest for all of them: connections, ranges, redirects, certificates, proxies
and resuming.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cdi.api.digest import Digest
from cdi.api.errors import CdiError

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A GET request, without its Range."""

    url: str
    headers: Headers = ()
    """Headers that are sent to every redirect target."""
    sensitive_headers: Headers = ()
    """Authorization and user-defined headers; dropped when a redirect leaves the origin (scheme, host, port)."""


class HttpObject(Protocol):
    """The description of how to request one object."""

    location: str
    """The object's location for messages, without secrets."""

    name: str | None
    """The last part of the object's name."""

    digests: tuple[Digest, ...]
    """The digests of the whole content, if the service stated them beforehand."""

    def request(self) -> HttpRequest:
        """Return the request, which is created for each use because signatures and tokens expire. Thread-safe."""
        ...

    def refresh_credentials(self, status: int) -> bool:
        """Renew the credentials that the server rejected with 401 or 403.

        Returns whether they changed, so that the request is repeated, at most once.
        """
        ...

    def error_from_response(self, status: int, headers: Mapping[str, str], body: bytes) -> CdiError | None:
        """Return the error that the service itself describes in a response (4xx, 5xx, a 3xx without a Location).

        `headers` have lower-case names; `body` is the beginning of the body, at most 16 KiB and possibly empty. None
        means that the status alone determines the error.
        """
        ...

    def sibling(self, name: str) -> HttpObject | None:
        """Return the object of that name beside this one."""
        ...
