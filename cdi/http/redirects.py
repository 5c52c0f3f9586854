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
from cdi.http import status
from cdi.http.dialer import SocketCanceller
from cdi.http.http_object import Headers, HttpObject, HttpRequest
from cdi.http.message import WHOLE, Response
from cdi.http.transport import USER_AGENT, Transport
from cdi.http.url import Url

MAX_REDIRECTS = 10
_FORGET_AFTER = 3
"""Consecutive failures after which a cached redirect is requested again, since it may then lead to another mirror."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ANSWERS = WHOLE | {206, 416}
_RENEWABLE = frozenset({301, 307, 400, 401, 403})
"""Statuses for which another signature, token or region may help; S3 uses 400 and 301 for some of these cases."""


@dataclass(frozen=True, slots=True)
class _ResolvedRedirect:
    """The URL that a chain of redirects ended at."""

    asked: str
    url: Url
    cross_origin: bool
    """Whether a redirect left the origin, so that credentials must not be sent."""


class RedirectingClient:
    """A client that sends GET requests for one endpoint; thread-safe."""

    def __init__(self, endpoint: HttpObject, transport: Transport) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._lock = threading.Lock()
        self._final: _ResolvedRedirect | None = None
        self._final_failures = 0

    @property
    def redirected(self) -> str | None:
        """The URL that redirects ended at, for messages; None without redirects."""
        with self._lock:
            return None if self._final is None else self._final.url.redacted

    def get(self, cancel: SocketCanceller, *extra: tuple[str, str]) -> Response:
        """Send a GET, follow redirects and renew credentials.

        Returns a response with the whole content (200, 203) or a part of it (206), or with status 416; raises for any
        other status.
        """
        renewed = False
        request = self._endpoint.request()
        final = self._cached_redirect(request.url)
        while True:
            try:
                response, cross_origin = self._follow(request, final, cancel, extra)
            except (SourceUnreachable, SourceStalled, SourceTruncated):
                self._count_failure(final)
                raise
            if response.status in _ANSWERS:
                self._final_failures = 0
                return response
            body = response.read_prefix(status.MAX_BODY)
            self._transport.release_response(response)
            if final is not None and 400 <= response.status < 500 and response.status not in status.PASSING:
                # Most likely a signed link has expired, so ask the original URL for a new one.
                self._invalidate_redirect()
                final = None
                continue
            self._count_failure(final)
            problem = self._endpoint.error_from_response(response.status, status.lowercase_names(response), body)
            if not cross_origin and not renewed and response.status in _RENEWABLE:
                renewed = True
                if self._endpoint.refresh_credentials(response.status):
                    request = self._endpoint.request()
                    continue
            if problem is None:
                problem = status.error_for_status(
                    response,
                    body,
                    sent=None if cross_origin else _authorization(request),
                    credentials_dropped=cross_origin and bool(request.sensitive_headers),
                )
            raise problem

    def _follow(
        self, request: HttpRequest, final: _ResolvedRedirect | None, cancel: SocketCanceller, extra: Headers
    ) -> tuple[Response, bool]:
        """Return the response at the end of the redirects, and whether it came from another origin."""
        url, cross_origin = (Url.parse(request.url), False) if final is None else (final.url, final.cross_origin)
        cookies = False
        for _ in range(MAX_REDIRECTS + 1):
            headers = request_headers(request, extra, cross_origin=cross_origin)
            response = self._transport.send("GET", url, headers, cancel)
            if not is_redirect(response):
                break
            self._transport.release_response(response)
            cookies = cookies or "Set-Cookie" in response.headers
            following = redirect_target(response)
            # Credentials are not sent even if a later redirect returns to the first origin: the other server chose that
            # URL.
            cross_origin = cross_origin or following.origin != url.origin
            url = following
        else:
            raise _too_many_redirects(self._endpoint.location, cookies=cookies)
        if final is None and url.text != Url.parse(request.url).text and response.status in _ANSWERS:
            with self._lock:
                self._final = _ResolvedRedirect(request.url, url, cross_origin)
        return response, cross_origin

    def _cached_redirect(self, asked: str) -> _ResolvedRedirect | None:
        with self._lock:
            return self._final if self._final is not None and self._final.asked == asked else None

    def _invalidate_redirect(self) -> None:
        with self._lock:
            self._final = None
            self._final_failures = 0

    def _count_failure(self, final: _ResolvedRedirect | None) -> None:
        if final is None:
            return
        with self._lock:
            self._final_failures += 1
            if self._final_failures >= _FORGET_AFTER:
                self._final = None
                self._final_failures = 0


def request_headers(request: HttpRequest, extra: Headers = (), *, cross_origin: bool) -> Headers:
    """Return the header fields to send; without the sensitive ones if a redirect left the origin."""
    own = request.headers if cross_origin else (*request.headers, *request.sensitive_headers)
    names = {name.lower() for name, _ in own}
    usual = (("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Accept-Encoding", "identity"))
    return (*(pair for pair in usual if pair[0].lower() not in names), *own, *extra)


def is_redirect(response: Response) -> bool:
    """Return whether a response names the URL to send the request to instead."""
    return response.status in _REDIRECTS and "Location" in response.headers


def redirect_target(response: Response, *, allow_downgrade: bool = False) -> Url:
    """Return the URL that a redirect names.

    Raises `SourceUrlInvalid`, and `SourceProtocolError` for a redirect from https to http unless `allow_downgrade`.
    """
    url = response.url
    target = url.join(response.headers["Location"])
    if url.scheme == "https" and target.scheme == "http" and not allow_downgrade:
        raise SourceProtocolError(
            f"the server redirects from https to plain http ({target.redacted})",
            where=url.redacted,
            remedy="use a server that does not leave https, or give its http URL",
        )
    return target


def _authorization(request: HttpRequest) -> str | None:
    """Return the value of the request's Authorization field."""
    given = (*request.sensitive_headers, *request.headers)
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
