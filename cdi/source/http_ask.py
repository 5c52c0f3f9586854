"""Requests for one object: redirects, credential renewal and cached redirects.

Three kinds of requests are repeated here because the server is not at fault: one whose credentials were renewed, one to
an expired cached redirect, and (in the transport) one on an idle connection that had been closed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from cdi.api.errors import (
    SourceProtocolError,
    SourceStalled,
    SourceTooManyRedirects,
    SourceTruncated,
    SourceUnreachable,
)
from cdi.source import http_status
from cdi.source.connection import Canceller
from cdi.source.endpoint import Endpoint, Headers, HttpRequest
from cdi.source.http_message import WHOLE, Response
from cdi.source.http_transport import USER_AGENT, Transport
from cdi.source.http_url import Url

MAX_REDIRECTS = 10
_FORGET_AFTER = 3
"""Consecutive failures after which a cached redirect is requested again, since it may then lead to another mirror."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ANSWERS = WHOLE | {206, 416}
_RENEWABLE = frozenset({301, 307, 400, 401, 403})
"""Statuses for which another signature, token or region may help; S3 uses 400 and 301 for some of these cases."""


@dataclass(frozen=True, slots=True)
class _Final:
    """The URL that a chain of redirects ended at."""

    asked: str
    url: Url
    crossed: bool
    """Whether a redirect left the origin, so that credentials must not be sent."""


class Asker:
    """A client that sends GET requests for one endpoint; thread-safe."""

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._lock = threading.Lock()
        self._final: _Final | None = None
        self._final_failures = 0

    @property
    def redirected(self) -> str | None:
        """The URL that redirects ended at, for messages; None without redirects."""
        with self._lock:
            return None if self._final is None else self._final.url.location

    def ask(self, cancel: Canceller, *extra: tuple[str, str]) -> Response:
        """Send a GET, follow redirects and renew credentials.

        Returns a response with the whole content (200, 203) or a part of it (206), or with status 416; raises for any
        other status.
        """
        renewed = False
        request = self._endpoint.request()
        final = self._remembered(request.url)
        while True:
            try:
                response, crossed = self._follow(request, final, cancel, extra)
            except (SourceUnreachable, SourceStalled, SourceTruncated):
                self._count_failure(final)
                raise
            if response.status in _ANSWERS:
                self._final_failures = 0
                return response
            body = response.beginning(http_status.MAX_BODY)
            self._transport.finish(response)
            if final is not None and 400 <= response.status < 500 and response.status not in http_status.PASSING:
                # Most likely a signed link has expired, so ask the original URL for a new one.
                self._forget()
                final = None
                continue
            self._count_failure(final)
            problem = self._endpoint.explain(response.status, http_status.lower(response), body)
            if not crossed and not renewed and response.status in _RENEWABLE:
                renewed = True
                if self._endpoint.refused(response.status):
                    request = self._endpoint.request()
                    continue
            if problem is None:
                problem = http_status.failure(
                    response,
                    body,
                    sent=None if crossed else _authorization(request),
                    credentials_dropped=crossed and bool(request.secret_headers),
                )
            raise problem

    def _follow(
        self, request: HttpRequest, final: _Final | None, cancel: Canceller, extra: Headers
    ) -> tuple[Response, bool]:
        """Return the response at the end of the redirects, and whether it came from another origin."""
        url, crossed = (Url.parse(request.url), False) if final is None else (final.url, final.crossed)
        cookies = False
        for _ in range(MAX_REDIRECTS + 1):
            response = self._transport.get(url, self._headers(request, extra, crossed=crossed), cancel)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                break
            self._transport.finish(response)
            cookies = cookies or "Set-Cookie" in response.headers
            following = url.redirected(location)
            if url.scheme == "https" and following.scheme == "http":
                raise SourceProtocolError(
                    f"the server redirects from https to plain http ({following.location})",
                    where=url.location,
                    remedy="use a server that does not leave https, or give its http URL",
                )
            # Credentials are not sent even if a later redirect returns to the first origin: the other server chose that
            # URL.
            crossed = crossed or following.origin != url.origin
            url = following
        else:
            raise _too_many_redirects(self._endpoint.location, cookies=cookies)
        if final is None and url.text != Url.parse(request.url).text and response.status in _ANSWERS:
            with self._lock:
                self._final = _Final(request.url, url, crossed)
        return response, crossed

    def _headers(self, request: HttpRequest, extra: Headers, *, crossed: bool) -> Headers:
        own = request.headers if crossed else (*request.headers, *request.secret_headers)
        names = {name.lower() for name, _ in own}
        usual = (("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Accept-Encoding", "identity"))
        return (*(pair for pair in usual if pair[0].lower() not in names), *own, *extra)

    def _remembered(self, asked: str) -> _Final | None:
        with self._lock:
            return self._final if self._final is not None and self._final.asked == asked else None

    def _forget(self) -> None:
        with self._lock:
            self._final = None
            self._final_failures = 0

    def _count_failure(self, final: _Final | None) -> None:
        if final is None:
            return
        with self._lock:
            self._final_failures += 1
            if self._final_failures >= _FORGET_AFTER:
                self._final = None
                self._final_failures = 0


def _authorization(request: HttpRequest) -> str | None:
    """Return the value of the request's Authorization field."""
    given = (*request.secret_headers, *request.headers)
    return next((value for name, value in given if name.lower() == "authorization"), None)


def _too_many_redirects(where: str, *, cookies: bool) -> SourceTooManyRedirects:
    if not cookies:
        return SourceTooManyRedirects(f"more than {MAX_REDIRECTS} redirects", where=where)
    return SourceTooManyRedirects(
        f"more than {MAX_REDIRECTS} redirects, and the server sets cookies with them, which are not returned",
        where=where,
        remedy="the server requires a browser that keeps cookies: use a direct link, or give the log-in's cookie as a "
        "secret header (Cookie: NAME=VALUE)",
    )
