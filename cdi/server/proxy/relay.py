"""Relay one request to an upload server over a connection of its own, with blocking calls.

A body passes through one buffer at the speed of the slower side. The upload server is asked first whether it accepts
the body (``Expect: 100-continue``), so that a rejection costs no upload. It may also end an upload by responding early;
the response is forwarded at once, whatever the client is doing.

The start of a body stays in the buffer until the upload server has committed to the upload (`BODY_KEPT_HEADER`). If the
server ends before that, because it lacks scratch space or because its pod is replaced, another one is sent the same.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cdi.api.errors import CdiError, Retry, UploadNotReady, by_code
from cdi.api.job import Failure
from cdi.api.json_document import parse_json
from cdi.api.upload_protocol import BODY_KEPT_HEADER
from cdi.http.connection import Connection, EarlyResponse, RemoteDisconnected
from cdi.http.message import read_response
from cdi.http.server.plaintext import peer_uid
from cdi.http.server.request import ServerRequest
from cdi.http.url import Url
from cdi.server.proxy.volumes import Destination

MAX_REPLAYED = 256 << 10
"""Bytes at the start of a body that can be sent again; more than are needed to identify an image in its wrappers."""
CONNECT_TIMEOUT = 5.0
"""Seconds until connecting fails; the address of a deleted pod may be unreachable for a while."""
_ANSWERING = 12 * 3600.0
"""Seconds that the server may take to process what it received; the kernel detects a dead server much earlier."""
_GONE = 60
"""Seconds without TCP acknowledgements until the peer counts as dead."""
_MAX_RESPONSE = 64 << 10
_MAX_INFORMATIONAL_FIELDS = 20
_CONTINUE, _PROCESSING = 100, 102
_REQUEST_FIELDS = (
    "content-type", "content-digest", "repr-digest", "digest", "content-md5", "tus-resumable",
    "upload-length", "upload-offset", "upload-metadata", "upload-checksum", "upload-defer-length",
    "x-http-method-override",
)  # fmt: skip
_ANSWER_FIELDS = (
    "Content-Type", "Location", "Cache-Control", "Tus-Resumable", "Tus-Version", "Upload-Offset", "Upload-Length",
    "Upload-Expires", "Retry-After",
)  # fmt: skip


class ServerLost(Exception):
    """Error for an upload server that is unreachable or disconnected without a response; `error` has the cause."""

    def __init__(self, error: UploadNotReady) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """The upload server's response."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    failure: Failure | None = None
    """The error that the body describes; the proxy renders it in the representation that its client accepts."""


class BodyStart:
    """The start of one request's body, and the buffer that carries the rest; used by one thread."""

    def __init__(self) -> None:
        self._buffer: memoryview | None = None
        self.size = 0
        """Bytes of the body that are kept."""
        self.complete = False
        """Whether the kept bytes are the whole body."""
        self.dropped = False
        """Whether an upload server has committed to the upload; the rest of the body is sent only once."""
        self.sent = False
        """Whether any of it was sent to an upload server."""

    @property
    def buffer(self) -> memoryview:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(MAX_REPLAYED))
        return self._buffer


def relay(
    request: ServerRequest,
    destination: Destination,
    context: ssl.SSLContext,
    start: BodyStart,
    wanted: Callable[[], None],
    received: Callable[[int], None],
) -> Relayed:
    """Relay the request of `request` and return the response.

    Args:
        request: The client's request.
        destination: The upload server.
        context: The TLS context for the upload server.
        start: The start of the body, as read by earlier calls for the same request.
        wanted: Called when the server asks for the body.
        received: Called with the number of body bytes read from the client.

    Raises:
        ServerLost: The upload server is unreachable, or disconnected without a response.
        RemoteDisconnected: The client disconnected.
        CdiError: Reading the client's body failed.
    """
    where = "the worker" if destination.local else f"{destination.host}:{destination.port}"
    connection, sock = _connect(destination, context, where)
    try:
        return _Upstream(request, connection, sock, destination, start, wanted, received).exchange()
    except _ClientFailed as failed:
        raise failed.error from None
    except (RemoteDisconnected, CdiError) as error:
        raise _lost("the upload server was lost", where) from error
    finally:
        connection.close()


class _ClientFailed(Exception):
    """Error of the client's side, as opposed to the upload server's."""

    def __init__(self, error: CdiError | RemoteDisconnected) -> None:
        super().__init__(str(error))
        self.error = error


class _Answered(Exception):
    """The upload server sent its response before it had received the whole body."""


class _Upstream:
    """The exchange with one upload server."""

    def __init__(
        self,
        request: ServerRequest,
        connection: Connection,
        sock: socket.socket,
        destination: Destination,
        start: BodyStart,
        wanted: Callable[[], None],
        received: Callable[[int], None],
    ) -> None:
        self._request = request
        self._connection = connection
        self._destination = destination
        self._descriptor = sock.fileno()
        self._start = start
        self._wanted = wanted
        self._received = received
        self._chunked = request.head.length is None
        self._holds = False
        """Whether the server reports when it has committed to the upload."""

    def exchange(self) -> Relayed:
        self._send_head()
        if self._request.head.length != 0 and self._is_wanted():
            self._wanted()
            # A server that disconnects meanwhile has usually sent a response with the cause.
            with contextlib.suppress(RemoteDisconnected, _Answered):
                try:
                    self._pass_on()
                finally:
                    self._request.interrupt_when_readable(None)
        return self._answer()

    def _send_head(self) -> None:
        head = self._request.head
        fields = {name: head.headers[name] for name in _REQUEST_FIELDS if name in head.headers}
        # Ask for a machine-readable error: the proxy decides whether to retry, and renders it for the client.
        fields["accept"] = "application/json"
        if self._chunked:
            fields["transfer-encoding"] = "chunked"
        elif head.length or head.method in {"POST", "PUT", "PATCH"}:
            fields["content-length"] = str(head.length)
        if head.length != 0:
            fields["expect"] = "100-continue"
            fields[BODY_KEPT_HEADER] = str(MAX_REPLAYED)
        lines = [f"{head.method} {head.path} HTTP/1.1", f"Host: {self._destination.host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        self._connection.send("\r\n".join((*lines, "", "")).encode("latin-1"))

    def _is_wanted(self) -> bool:
        fields = self._informational(_CONTINUE)
        self._holds = fields is not None and BODY_KEPT_HEADER in fields
        return fields is not None

    def _informational(self, status: int) -> dict[str, str] | None:
        """Read an informational response of this status and return its fields; None if it is the final response."""
        connection = self._connection
        line = connection.readline()
        if not line.startswith(f"HTTP/1.1 {status} ".encode()):
            connection.push_back(line + connection.take_buffered())
            return None
        fields: dict[str, str] = {}
        for _ in range(_MAX_INFORMATIONAL_FIELDS):
            line = connection.readline()
            if line in {b"\r\n", b""}:
                break
            name, _, value = line.decode("latin-1").partition(":")
            fields[name.lower()] = value.strip()
        return fields

    # --- the body ---------------------------------------------------------------------------------------------------

    def _pass_on(self) -> None:
        """Send the body until it ends or the server responds.

        Raises:
            RemoteDisconnected: The server disconnected.
            _Answered: The server responded while a send was blocked.
            _ClientFailed: Reading from the client failed.
        """
        start, at = self._start, 0
        try:
            self._request.body  # noqa: B018  sends 100 Continue to the client
        except RemoteDisconnected as error:
            raise _ClientFailed(error) from error
        self._request.interrupt_when_readable(self._descriptor)
        while not start.dropped:
            if at < start.size:
                start.sent = True
                self._send(start.buffer[at : start.size])
                at = start.size
                continue  # the server may have committed meanwhile
            if start.complete:
                self._end()
                return
            if not self._extend_start():
                return
        answered = self._connection.take_buffered()
        self._connection.push_back(answered)
        if not answered:
            self._pass_on_rest()

    def _extend_start(self) -> bool:
        """Read more of the kept start, or drop it once the server has committed; return False if it has responded."""
        start = self._start
        if start.size < MAX_REPLAYED:
            count = self._read(start.buffer[start.size :])
            if count is not None:
                start.size += count
                return True
        elif not self._holds:
            start.dropped = True
            return True
        start.dropped = self._informational(_PROCESSING) is not None
        return start.dropped

    def _pass_on_rest(self) -> None:
        buffer = self._start.buffer
        while not self._start.complete:
            count = self._read(buffer)
            if count is None:
                return
            self._send(buffer[:count])
        self._end()

    def _read(self, room: memoryview) -> int | None:
        """Return the number of bytes read from the client, or None if the server has responded."""
        body = self._request.body
        try:
            count = body.readinto(room)
        except EarlyResponse:
            return None
        except (RemoteDisconnected, CdiError) as error:
            raise _ClientFailed(error) from error
        self._start.complete = not count or body.ended
        self._received(count)
        return count

    def _send(self, data: memoryview) -> None:
        if data and self._chunked:
            self._transmit(b"%x\r\n" % len(data))
        if data:
            self._transmit(data)
        if data and self._chunked:
            self._transmit(b"\r\n")

    def _end(self) -> None:
        if self._chunked:
            self._transmit(b"0\r\n\r\n")

    def _transmit(self, data: bytes | memoryview) -> None:
        """Send all of `data`; raise `_Answered` if the server responds instead of reading the rest."""
        left = memoryview(data)
        while left:
            left = left[self._connection.send_until_readable(left) :]
            if left and (self._start.dropped or self._informational(_PROCESSING) is None):
                raise _Answered
            if left:
                self._start.dropped = True

    # --- the answer -------------------------------------------------------------------------------------------------

    def _answer(self) -> Relayed:
        method = self._request.head.method
        url = Url.parse(f"https://{_bracketed(self._destination.host)}/")
        response = read_response(self._connection, url, method=method)
        body = b"" if method == "HEAD" else response.read_prefix(_MAX_RESPONSE)
        headers = {name: value for name in _ANSWER_FIELDS if (value := response.headers.get(name)) is not None}
        failure = _failure_in(body) if response.status >= 400 else None
        if failure is not None:
            headers.pop("Content-Type", None)
        return Relayed(status=response.status, headers=headers, body=body, failure=failure)


def _failure_in(body: bytes) -> Failure | None:
    """Return the error that a response body describes (`ServerRequest.respond_error`), or None for anything else."""
    try:
        document = parse_json(body)
        code, message, retry = str(document["code"]), str(document["message"]), Retry(document["retry"])
    except (ValueError, KeyError, TypeError):
        return None
    return Failure(code=code, message=message, retry=retry, exit_status=by_code(code).exit_status)


def _connect(destination: Destination, context: ssl.SSLContext, where: str) -> tuple[Connection, socket.socket]:
    if destination.local is not None:
        own = _connect_locally(destination.local, where)
        return Connection(own, None, stall_timeout=_ANSWERING, where=where), own
    try:
        plain = socket.create_connection((destination.host, destination.port), CONNECT_TIMEOUT)
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
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(name)
        # Any user may bind a free abstract socket name, so check the peer's user id.
        if peer_uid(sock) != os.geteuid():
            raise PermissionError("the socket belongs to another user")
    except OSError as error:
        sock.close()
        raise _unreachable(where, error) from error
    return sock


def _unreachable(where: str, error: OSError) -> ServerLost:
    if isinstance(error, ssl.SSLCertVerificationError):
        reason: str | None = f"its certificate is not trusted: {error.verify_message}"
    else:
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return _lost(f"the upload server cannot be reached: {reason or type(error).__name__}", where)


def _lost(what: str, where: str) -> ServerLost:
    return ServerLost(UploadNotReady(what, where=where, remedy="send it again"))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
