"""What stands between a kind of source and the HTTP bytes under it.

S3, GCS and registries are HTTP with their own way of naming and authorising; each gives an `Endpoint`, and
`cdi.source.http.HttpSource` does the rest for all of them: connections, ranges, redirects, certificates, proxies,
resuming.
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
    """One GET, without its Range."""

    url: str
    headers: Headers = ()
    """Sent wherever redirects lead."""
    secret_headers: Headers = ()
    """Authorization and the user's own headers: dropped when a redirect leaves the origin (scheme, host, port)."""


class Endpoint(Protocol):
    """How one object is asked for."""

    location: str
    """For messages: no secrets."""

    name: str | None
    """The last part of the object's name."""

    digests: tuple[Digest, ...]
    """Of the whole content, where the service told them beforehand."""

    def request(self) -> HttpRequest:
        """Called for every request, from any thread: signatures and tokens expire."""
        ...

    def refused(self, status: int) -> bool:
        """The server answered 401 or 403.  True: the credentials were renewed, ask again (at most once a request)."""
        ...

    def explain(self, status: int, headers: Mapping[str, str], body: bytes) -> CdiError | None:
        """What the service itself says in an answer that is an error (4xx, 5xx, a 3xx without a Location).

        `headers` have lower-case names, `body` is the beginning of the answer, 16 KiB at most and possibly empty.
        None: the status alone says it, in the terms of HTTP.
        """
        ...

    def sibling(self, name: str) -> Endpoint | None:
        """The object of that name beside this one."""
        ...
