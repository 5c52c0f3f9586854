"""Requests for small documents of registries, with limits, safe redirects and mapped errors.

Asynchronous (aiohttp), because a controller that polls many images uses it too. Layers are read with `HttpSource`
instead.
"""

from __future__ import annotations

import asyncio
import ssl
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import yarl

from cdi.api.errors import (
    CdiError,
    SourceProtocolError,
    SourceStalled,
    SourceTooManyRedirects,
    SourceUnreachable,
)
from cdi.api.job import Proxy, Tls
from cdi.http.connection import resolution_error
from cdi.http.headers import content_codings
from cdi.http.proxy import ProxySettings
from cdi.http.tls import certificate_error, make_context
from cdi.http.url import Url

_REDIRECTS = 5
_CONNECT = 30.0
_TOTAL = 300.0
"""Seconds for one document, so that a server cannot send it a byte at a time without end."""
_CHUNK = 64 << 10
_TURNS = 5
_HEADER = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    status: int
    headers: Mapping[str, str]
    """The header fields by lower-case name; of repeated ones the last."""
    challenges: tuple[str, ...]
    """All values of WWW-Authenticate."""
    body: bytes
    cross_origin: bool
    """Whether redirects led to another origin."""


class _Connector(aiohttp.TCPConnector):
    """A connector that records its connections, so that none outlives the client.

    A TLS connection that is closed after a failure waits for the peer's close_notify, for longer than the event loop
    runs.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(ssl=context, limit=16)
        self._opened: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*args, **kwargs)
        if connection.transport is not None:
            self._opened.add(connection.transport)
        return connection

    async def abort(self) -> None:
        """Abort all connections that are still open."""
        for transport in tuple(self._opened):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        # A transport closes its socket only some iterations of the event loop after abort().
        for _ in range(_TURNS):
            await asyncio.sleep(0)


class DocumentClient:
    """An asynchronous context manager that fetches documents."""

    def __init__(self, *, tls: Tls, proxy: Proxy, stall_timeout: float) -> None:
        """Read the settings; raise `SourceTlsUntrusted` or `SourceUrlInvalid` if they are unusable."""
        self._tls = tls
        self._context = make_context(tls)
        self._proxies = ProxySettings.make(proxy)
        self._stall = stall_timeout
        self._session: aiohttp.ClientSession | None = None
        self._connector: _Connector | None = None

    async def __aenter__(self) -> Self:
        self._connector = _Connector(self._context)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(
                total=max(_TOTAL, self._stall), sock_connect=min(_CONNECT, self._stall), sock_read=self._stall
            ),
            # A decompression bomb would expand before its size could be checked; cookies are not needed.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            max_line_size=_HEADER,
            max_field_size=_HEADER,
            headers={"Accept-Encoding": "identity", "User-Agent": "cdi"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None and self._connector is not None:
            await self._session.close()
            await self._connector.abort()
            self._session = self._connector = None

    async def fetch(
        self,
        url: Url,
        *,
        limit: int,
        accept: str | None = None,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        method: Literal["GET", "HEAD"] = "GET",
    ) -> Response:
        """Send a request, or POST a form, and read at most `limit` bytes of body; any status is returned.

        At most five redirects are followed: to another origin without `authorization`, never from https to http, and
        never with a form. Raises a `SourceError`.
        """
        first = url
        for _ in range(_REDIRECTS + 1):
            headers = {"Accept": accept or "application/json"}
            cross_origin = url.origin != first.origin
            if authorization is not None and not cross_origin:
                headers["Authorization"] = authorization
            answer, location = await self._once(url, headers, form, limit, method, cross_origin=cross_origin)
            if location is None or form is not None:
                return answer
            target = url.join(location)
            if url.scheme == "https" and target.scheme == "http" and not self._tls.insecure:
                raise SourceProtocolError(
                    "the server redirects from https to http", where=url.redacted, remedy="use the final URL"
                )
            url = target
        raise SourceTooManyRedirects(f"more than {_REDIRECTS} redirects", where=first.redacted)

    async def _once(
        self,
        url: Url,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        limit: int,
        method: Literal["GET", "HEAD"],
        *,
        cross_origin: bool,
    ) -> tuple[Response, str | None]:
        assert self._session is not None, "used as a context manager"
        proxy = self._proxies.for_url(url)
        proxy_headers = None
        if proxy is not None and proxy.authorization is not None:
            proxy_headers = {"Proxy-Authorization": proxy.authorization}
            if url.scheme == "http":
                headers = {**headers, **proxy_headers}
        try:
            async with self._session.request(
                method if form is None else "POST",
                yarl.URL(url.text, encoded=True),
                headers=headers,
                data=None if form is None else dict(form),
                allow_redirects=False,
                proxy=None if proxy is None else yarl.URL(proxy.url.text, encoded=True),
                proxy_headers=proxy_headers,
            ) as response:
                codings = content_codings(response.headers.getall("Content-Encoding", ()))
                if codings:
                    raise SourceProtocolError(
                        f"the server compressed the data ({', '.join(codings)[:80]!r}) although that was not requested",
                        where=url.redacted,
                    )
                answer = Response(
                    status=response.status,
                    headers={name.lower(): value for name, value in response.headers.items()},
                    challenges=tuple(response.headers.getall("WWW-Authenticate", ())),
                    body=await _read(response, limit, url.redacted),
                    cross_origin=cross_origin,
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _mapped(error, url, self._stall) from error
        redirected = answer.status in (301, 302, 303, 307, 308)
        return answer, answer.headers.get("location") if redirected else None


async def _read(response: aiohttp.ClientResponse, limit: int, where: str) -> bytes:
    parts = bytearray()
    while chunk := await response.content.read(_CHUNK):
        parts += chunk
        if len(parts) > limit:
            raise SourceProtocolError(
                f"the document exceeds {limit} bytes",
                where=where,
                remedy="check the URL: no manifest is that large",
            )
    return bytes(parts)


def _mapped(error: Exception, url: Url, stall: float) -> CdiError:
    where = url.redacted
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return certificate_error(cause, host=url.host, certificate=None, where=where)
        return SourceUnreachable(f"the TLS connection failed: {cause}", where=where)
    if isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return SourceUnreachable(
            "the server does not support TLS on this port",
            where=where,
            remedy="check host and port; mark a registry without TLS as insecure",
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return SourceUnreachable(
            f"the proxy answered {error.status}", where=where, remedy="check the proxy's settings and credentials"
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return SourceUnreachable("cannot reach the proxy", where=where, remedy="check the proxy's settings")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return resolution_error(error.host, error.os_error, where=where)
    if isinstance(error, aiohttp.ClientConnectorError):
        return SourceUnreachable(f"no connection: {error.strerror or error.os_error}", where=where)
    if isinstance(error, TimeoutError):
        return SourceStalled(f"no data received for {stall:g} s", where=where)
    if isinstance(error, aiohttp.ClientResponseError):
        return SourceProtocolError("the response is not HTTP", where=where)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | OSError):
        return SourceUnreachable("connection lost", where=where)
    return SourceUnreachable(f"the request failed: {type(error).__name__}", where=where)
