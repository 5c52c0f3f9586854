"""HTTP exchanges: get a connection (through a proxy, over TLS), send the request, and read the head of the response.

Sources that use the same servers share a `Transport`, so that CA certificates are loaded once and connections are
reused.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading

from cdi.api.errors import (
    CdiError,
    SourceError,
    SourceForbidden,
    SourceProtocolError,
    SourceRefused,
    SourceTruncated,
    SourceUnavailable,
    SourceUnreachable,
)
from cdi.api.job import Proxy, Tls
from cdi.http import tls as trust
from cdi.http.connection import Connection, ConnectionPool, RemoteDisconnected
from cdi.http.credentials import proxy_unauthorized
from cdi.http.dialer import CONNECT_TIMEOUT, Dialer, SocketCanceller
from cdi.http.http_object import Headers
from cdi.http.message import Response, read_response, request_bytes
from cdi.http.proxy import ProxyServer, ProxySettings
from cdi.http.tls_relay import relay
from cdi.http.url import Url

LOG = logging.getLogger(__name__)
_PROXY_REMEDY = "check the proxy settings (importProxy, or http_proxy, https_proxy and no_proxy)"
_CERTIFICATE_TIMEOUT = 5.0
USER_AGENT = "cdi-importer"


class Transport:
    """Connections with one set of TLS and proxy settings; thread-safe."""

    def __init__(self, *, tls: Tls, proxy: Proxy, stall_timeout: float) -> None:
        """Read the settings; raise `SourceUrlInvalid` for an unusable proxy URL."""
        self._tls = tls
        self._proxies = ProxySettings.make(proxy)
        self._stall = stall_timeout
        self._pool = ConnectionPool()
        self._dialer = Dialer()
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._users = 0

    def acquire(self) -> None:
        """Register one more user of this transport."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Unregister a user; the last one closes all connections."""
        with self._lock:
            self._users -= 1
            last = self._users <= 0
        if last:
            self._pool.close()

    def send(
        self, method: str, url: Url, headers: Headers, cancel: SocketCanceller, body: bytes | None = None
    ) -> Response:
        """Send a request and read the head of the response.

        The caller passes the response to `release_response` or `discard_response`.

        An idle connection that the server has closed is replaced by a new one, once; a request with a body is sent on a
        new one, since it must not be repeated. Raises `SourceError`s and `Interrupted`, but never because of a status
        code.
        """
        proxy = self._proxies.for_url(url)
        target = url.target
        if proxy is not None and url.scheme == "http":
            target = url.text
            if proxy.authorization is not None:
                headers = (*headers, ("Proxy-Authorization", proxy.authorization))
        if body is not None:
            headers = (*headers, ("Content-Length", str(len(body))))
        data = request_bytes(method, target, url.authority, headers) + (body or b"")
        key = (url.origin if proxy is None or url.scheme == "https" else "http", None if proxy is None else proxy)
        connection = self._pool.acquire(key) if body is None else None
        if connection is not None:
            try:
                return self._exchange(connection, url, method, data, cancel)
            except RemoteDisconnected:
                pass  # the server was closing the idle connection and did not process the request
        connection = self._open(url, proxy, key, cancel)
        try:
            return self._exchange(connection, url, method, data, cancel)
        except RemoteDisconnected as error:
            raise SourceUnreachable(
                f"the server closed the connection without a response ({error})", where=url.redacted
            ) from error

    def release_response(self, response: Response) -> None:
        """Release a response whose short remainder may be read, so that the connection can be reused."""
        if response.drain():
            self._pool.release(response.connection)
        else:
            self._pool.discard(response.connection)

    def discard_response(self, response: Response) -> None:
        """Release a response without reading the rest of its body."""
        if response.body.ended and response.body.reusable:
            self._pool.release(response.connection)
        else:
            self._pool.discard(response.connection)

    def _exchange(
        self, connection: Connection, url: Url, method: str, data: bytes, cancel: SocketCanceller
    ) -> Response:
        try:
            connection.acquire(cancel, where=url.redacted)
            connection.send(data)
            response = read_response(connection, url, method=method)
        except BaseException:
            self._pool.discard(connection)
            raise
        LOG.debug("%s %s: %d", method, url.redacted, response.status)
        return response

    def _open(self, url: Url, proxy: ProxyServer | None, key: object, cancel: SocketCanceller) -> Connection:
        hop = url if proxy is None else proxy.url
        try:
            sock = self._dialer.dial(hop.host, hop.port, cancel, where=url.redacted)
        except SourceUnreachable as error:
            if proxy is None:
                raise
            raise SourceUnreachable(f"the proxy: {error.what}", where=url.redacted, remedy=_PROXY_REMEDY) from error
        try:
            if proxy is not None:
                if proxy.url.scheme == "https":
                    sock = self._start_tls(sock, proxy.url, proxy, cancel)
                if url.scheme == "https":
                    self._tunnel(sock, url, proxy, cancel)
                    sock = self._plain(sock, cancel, where=url.redacted)
            if url.scheme == "https":
                sock = self._start_tls(sock, url, proxy, cancel)
        except BaseException:
            cancel.detach()
            sock.close()
            raise
        connection = Connection(sock, key, stall_timeout=self._stall, where=url.redacted)
        self._pool.add(connection)
        return connection

    def _start_tls(
        self, sock: socket.socket, url: Url, proxy: ProxyServer | None, cancel: SocketCanceller
    ) -> ssl.SSLSocket:
        context = self._ssl_context()
        timeout = min(CONNECT_TIMEOUT, self._stall)
        # wrap_socket() moves the descriptor to a new object, so `cancel` must not refer to the old one.
        cancel.detach()
        sock.settimeout(timeout)
        wrapped = context.wrap_socket(
            sock,
            server_hostname=url.host.partition("%")[0].rstrip("."),
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        try:
            cancel.attach(wrapped)
            wrapped.do_handshake()
        except ssl.SSLCertVerificationError as error:
            cancel.detach()
            wrapped.close()
            raise trust.certificate_error(
                error,
                host=url.host,
                certificate=self._fetch_rejected_certificate(url, proxy, cancel),
                where=url.redacted,
            ) from error
        except OSError as error:
            cancel.detach()
            wrapped.close()
            cancel.check()
            if isinstance(error, TimeoutError):
                reason = f"no response within {timeout:g} s"
            else:
                reason = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or type(error).__name__
            raise SourceUnreachable(
                f"no TLS connection to {url.host}:{url.port}: {reason}",
                where=url.redacted,
                remedy="check that the server supports TLS 1.2 or later on this port",
            ) from error
        except BaseException:
            cancel.detach()
            wrapped.close()
            raise
        return wrapped

    def _plain(self, sock: socket.socket, cancel: SocketCanceller, *, where: str) -> socket.socket:
        """Return a socket for the bytes in a tunnel, on which another TLS connection can begin."""
        if not isinstance(sock, ssl.SSLSocket):
            return sock
        cancel.detach()
        try:
            inner = relay(sock)
        except OSError as error:
            raise SourceUnreachable(f"no TLS connection through the proxy: {error}", where=where) from error
        cancel.attach(inner)
        return inner

    def _ssl_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = trust.make_context(self._tls)
            return self._context

    def _fetch_rejected_certificate(self, url: Url, proxy: ProxyServer | None, cancel: SocketCanceller) -> bytes | None:
        """Fetch the rejected certificate again for the error message, because OpenSSL does not keep it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        hop = url if proxy is None else proxy.url
        with contextlib.suppress(CdiError, OSError, ValueError):
            sock = self._dialer.dial(hop.host, hop.port, cancel, where=url.redacted)
            try:
                sock.settimeout(_CERTIFICATE_TIMEOUT)
                if proxy is not None and proxy.url != url:
                    if proxy.url.scheme == "https":
                        cancel.detach()
                        sock = context.wrap_socket(sock, server_hostname=proxy.url.host)
                    self._tunnel(sock, url, proxy, cancel)
                    sock = self._plain(sock, cancel, where=url.redacted)
                with context.wrap_socket(sock, server_hostname=url.host) as wrapped:
                    return wrapped.getpeercert(binary_form=True)
            finally:
                cancel.detach()
                sock.close()
        return None

    def _tunnel(self, sock: socket.socket, url: Url, proxy: ProxyServer, cancel: SocketCanceller) -> None:
        """Open a tunnel with CONNECT (RFC 9110 section 9.3.6); `sock` carries the tunnelled bytes afterwards."""
        host = f"[{url.host}]" if ":" in url.host else url.host
        place = f"{host}:{url.port}"
        headers: Headers = (("User-Agent", USER_AGENT),)
        if proxy.authorization is not None:
            headers = (*headers, ("Proxy-Authorization", proxy.authorization))
        connection = Connection(sock, None, stall_timeout=CONNECT_TIMEOUT, where=url.redacted)
        connection.acquire(cancel, where=url.redacted)
        try:
            connection.send(request_bytes("CONNECT", place, place, headers))
            response = read_response(connection, url, method="CONNECT")
        except RemoteDisconnected as error:
            raise SourceUnreachable(
                f"the proxy {proxy.label} closed the connection without a response",
                where=url.redacted,
                remedy=_PROXY_REMEDY,
            ) from error
        except (SourceProtocolError, SourceTruncated) as error:
            raise SourceUnreachable(
                f"{proxy.label} does not respond like a proxy: {error.what}", where=url.redacted, remedy=_PROXY_REMEDY
            ) from error
        if not 200 <= response.status < 300:
            raise _proxy_refusal(response, proxy, where=url.redacted)
        if not connection.is_reusable():
            # In TLS the client speaks first, so any byte received before that was injected.
            raise SourceProtocolError("the proxy sent data before the tunnel was established", where=url.redacted)


def _proxy_refusal(response: Response, proxy: ProxyServer, *, where: str) -> SourceError:
    status = response.status
    if status == 407:
        return proxy_unauthorized(response.headers, f"the proxy {proxy.label}", where=where)
    if status in {401, 403}:
        return SourceForbidden(
            f"the proxy {proxy.label} does not allow this host ({status})",
            where=where,
            remedy="allow the host in the proxy, or add it to no_proxy",
        )
    if status in {408, 429} or status >= 500:
        return SourceUnavailable(
            f"the proxy {proxy.label} cannot reach the server ({status})", where=where, remedy=_PROXY_REMEDY
        )
    return SourceRefused(
        f"the proxy {proxy.label} rejected the connection ({status})", where=where, remedy=_PROXY_REMEDY
    )
