"""One request, passed on to an upload server over a connection of its own, with blocking calls.

A body goes through one buffer, as fast as the slower side takes it.  The upload server is asked first whether it wants
the body, so a refusal costs nobody an upload, and it may end one that is under way by answering early: that is told at
once, whatever the client is doing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cdi.api.errors import CdiError, UploadNotReady
from cdi.server.proxy.volumes import Destination
from cdi.source.connection import Connection, ConnectionLost, Overheard
from cdi.source.http_message import read_response
from cdi.source.http_url import Url
from cdi.source.inbound.plain import peer_uid
from cdi.source.inbound.visit import Visit

_BUFFER = 256 << 10
_CONNECTING = 10.0
_ANSWERING = 12 * 3600.0
"""Seconds that a volume may take for what it was given; a server that is gone is noticed by the kernel much earlier."""
_GONE = 60
"""Seconds without a sign of life of the other machine."""
_MOST_ANSWER = 64 << 10
_REQUEST_FIELDS = (
    "accept", "content-type", "content-digest", "repr-digest", "digest", "content-md5", "tus-resumable",
    "upload-length", "upload-offset", "upload-metadata", "upload-checksum", "upload-defer-length",
    "x-http-method-override",
)  # fmt: skip
_ANSWER_FIELDS = (
    "Content-Type", "Location", "Cache-Control", "Tus-Resumable", "Tus-Version", "Upload-Offset", "Upload-Length",
    "Upload-Expires", "Retry-After",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """What the upload server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def relay(visit: Visit, destination: Destination, context: ssl.SSLContext, received: Callable[[int], None]) -> Relayed:
    """Pass the request of `visit` on; `received` is told of the bytes of its body as they go.

    Raises `UploadNotReady` where the server cannot be reached or is lost, and what reading the client's body raises.
    """
    where = "the worker" if destination.local else f"{destination.host}:{destination.port}"
    connection, sock = _connect(destination, context, where)
    try:
        upstream = _Upstream(visit, connection, sock, destination, received)
        try:
            upstream.ask()
            return upstream.answer()
        except (ConnectionLost, CdiError) as error:
            if upstream.of_client is error:
                raise
            raise UploadNotReady("the upload server was lost", where=where, remedy="try again") from error
    finally:
        connection.close()


class _Upstream:
    """The conversation with one upload server."""

    def __init__(
        self,
        visit: Visit,
        connection: Connection,
        sock: socket.socket,
        destination: Destination,
        received: Callable[[int], None],
    ) -> None:
        self._visit = visit
        self._connection = connection
        self._destination = destination
        self._descriptor = sock.fileno()
        self._received = received
        self.of_client: CdiError | None = None
        """A failure that came from the other side."""

    def ask(self) -> None:
        """Send the request, as far as it is wanted."""
        head = self._visit.head
        fields = {name: head.headers[name] for name in _REQUEST_FIELDS if name in head.headers}
        if head.length is None:
            fields["transfer-encoding"] = "chunked"
        elif head.length or head.method in {"POST", "PUT", "PATCH"}:
            fields["content-length"] = str(head.length)
        has_body = head.length != 0
        if has_body:
            fields["expect"] = "100-continue"
        lines = [f"{head.method} {head.path} HTTP/1.1", f"Host: {self._destination.host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        self._connection.send("\r\n".join((*lines, "", "")).encode("latin-1"))
        if not has_body or not self._wanted():
            return
        # Where it is lost meanwhile it has mostly said why.
        with contextlib.suppress(ConnectionLost):
            try:
                self._pass_on(chunked=head.length is None)
            finally:
                self._visit.heed(None)

    def _wanted(self) -> bool:
        line = self._connection.readline()
        if line.startswith(b"HTTP/1.1 100 "):
            self._connection.readline()
            return True
        self._connection.unread(line + self._connection.held())
        return False

    def _pass_on(self, *, chunked: bool) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        connection = self._connection
        try:
            body = self._visit.body
        except ConnectionLost as error:
            raise self._mark(UploadNotReady("the client is gone")) from error
        self._visit.heed(self._descriptor)
        while True:
            try:
                count = body.readinto(buffer)
            except Overheard:
                return  # it has an answer
            except ConnectionLost as error:
                raise self._mark(UploadNotReady("the client is gone")) from error
            except CdiError as error:
                raise self._mark(error) from None
            if chunked:
                connection.send(b"%x\r\n" % count)
            if count:
                connection.send(buffer[:count])
                self._received(count)
            if chunked:
                connection.send(b"\r\n")
            if not count or (not chunked and body.ended):
                return

    def _mark(self, error: CdiError) -> CdiError:
        self.of_client = error
        return error

    def answer(self) -> Relayed:
        method = self._visit.head.method
        url = Url.parse(f"https://{_bracketed(self._destination.host)}/")
        response = read_response(self._connection, url, method=method)
        body = b"" if method == "HEAD" else response.beginning(_MOST_ANSWER)
        headers = {name: value for name in _ANSWER_FIELDS if (value := response.headers.get(name)) is not None}
        return Relayed(status=response.status, headers=headers, body=body)


def _connect(destination: Destination, context: ssl.SSLContext, where: str) -> tuple[Connection, socket.socket]:
    if destination.local is not None:
        own = _connect_locally(destination.local, where)
        return Connection(own, None, stall_timeout=_ANSWERING, where=where), own
    try:
        plain = socket.create_connection((destination.host, destination.port), _CONNECTING)
    except OSError as error:
        raise _unreachable(where, error) from error
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _GONE // 2)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _GONE // 6)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE * 1000)
        sock = context.wrap_socket(plain, server_hostname=destination.name or destination.host)
    except OSError as error:
        plain.close()
        raise _unreachable(where, error) from error
    return Connection(sock, None, stall_timeout=_ANSWERING, where=where), sock


def _connect_locally(name: str, where: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_CONNECTING)
        sock.connect(name)
        # Such a name is anybody's who takes it first.
        if peer_uid(sock) != os.geteuid():
            raise PermissionError("it is another user's")
    except OSError as error:
        sock.close()
        raise _unreachable(where, error) from error
    return sock


def _unreachable(where: str, error: OSError) -> UploadNotReady:
    if isinstance(error, ssl.SSLCertVerificationError):
        reason: str | None = f"its certificate is not good: {error.verify_message}"
    else:
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return UploadNotReady(
        f"the upload server cannot be reached: {reason or type(error).__name__}", where=where, remedy="try again"
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
