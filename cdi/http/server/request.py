"""One request of a client after its head was received, with blocking calls."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import ssl
import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from cdi.api.errors import CdiError, InternalError, UploadMalformed
from cdi.api.job import Failure
from cdi.http.connection import Connection
from cdi.http.message import Body, Framing
from cdi.http.server.body import RequestBody
from cdi.http.server.pending import Outgoing
from cdi.http.server.request_head import RequestHead

LOG = logging.getLogger(__name__)
_REASONS = {460: "Checksum Mismatch"}


class ServerRequest:
    """A request and its single response; used by one thread at a time, except for `interrupt`."""

    def __init__(
        self, sock: ssl.SSLSocket, head: RequestHead, beginning: bytes, *, stall_timeout: float, where: str
    ) -> None:
        """Set up the request.

        Args:
            sock: The connection.
            head: The head of the request.
            beginning: The bytes received after the head, which belong to the body.
            stall_timeout: Seconds a read may take without receiving data.
            where: The location for messages.
        """
        self.head = head
        self.status: int | None = None
        """The status of the response, once there is one."""
        self.verified = False
        """Whether the client has presented a valid token or certificate."""
        self.last = False
        """Whether the connection must not carry another request, whatever the client asks for."""
        self.outgoing: Outgoing | None = None
        """The part of the response that the client has not accepted yet."""
        self._sock = sock
        self._connection = Connection(sock, None, stall_timeout=stall_timeout, where=where)
        self._connection.push_back(beginning)
        self._body: Body | None = None
        self._continued = False
        self._lock = threading.Lock()
        self._interrupted = False
        self._signal: int | None = None
        """An eventfd, while a thread may be reading the body."""

    @property
    def responded(self) -> bool:
        return self.status is not None

    @property
    def client_common_name(self) -> str | None:
        """The common name of the client's certificate, which the TLS context has verified; None without one."""
        certificate: Mapping[str, Any] = self._sock.getpeercert() or {}
        names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
        return str(names[0]) if len(names) == 1 else None

    @property
    def interrupted(self) -> bool:
        """True after `interrupt`: the server is stopping, and a response can still be sent."""
        return self._interrupted

    @property
    def body(self) -> Body:
        """The body of the request; the first access sends 100 Continue if the client expects it."""
        if self._body is None:
            head = self.head
            framing = Framing.CHUNKED if head.length is None else Framing.LENGTH
            self._body = RequestBody(self._connection, framing, head.length, reusable=head.keep_alive, strict=True)
            with self._lock:
                self._signal = os.eventfd(int(self._interrupted), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._connection.end_at(self._signal)
            if head.expect_continue and not self._body.ended and not self._continued:
                self.inform(100)
        return self._body

    def inform(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Send an informational response (RFC 9110, section 15.2) from the thread that reads the body.

        Raises `RemoteDisconnected` if the client closed the connection.
        """
        self._continued |= status == 100
        fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._connection.send(f"HTTP/1.1 {status} {_reason(status)}\r\n{fields}\r\n".encode("latin-1"))

    def is_gone(self, seconds: float) -> bool:
        """Return whether the client closes the connection within `seconds`; received data stays unread.

        A client that only half-closes the connection (``shutdown``, RFC 9112, section 9.6) counts as gone too.
        """
        poller = select.poll()
        poller.register(self._sock, select.POLLRDHUP)
        return bool(poller.poll(seconds * 1000)) and not self.interrupted

    def small_body(self, limit: int) -> bytes:
        """Return the whole body, which has to arrive within one stall timeout.

        Raises `UploadMalformed` if it has more than `limit` bytes, and what reading it raises.
        """
        body, data, buffer = self.body, bytearray(), memoryview(bytearray(limit + 1))
        with self._connection.deadline():
            while count := body.readinto(buffer):
                data += buffer[:count]
                if len(data) > limit:
                    raise UploadMalformed("the body is too long", status=413, remedy="")
        return bytes(data)

    def interrupt_when_readable(self, other: int | None) -> None:
        """Make reads of the body raise `EarlyResponse` if the descriptor `other` is readable; None turns this off."""
        self._connection.interrupt_when_readable(other)

    def fileno(self) -> int:
        return self._sock.fileno()

    def interrupt(self) -> None:
        """Make reads of the body fail; a response can still be sent. Thread-safe."""
        with self._lock:
            self._interrupted = True
            if self._signal is not None:
                os.eventfd_write(self._signal, 1)

    def respond(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: str = "text/plain; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Respond without waiting for the client; what it does not accept at once stays in `outgoing`.

        Returns whether the connection may carry another request once all of this is sent.
        """
        if self.responded:
            raise InternalError("a request was answered twice")
        LOG.debug("%s %s: %d", self.head.method, self.head.path, status)
        self.status = status
        reusable = self.head.keep_alive and not self.last and self._at_end()
        fields = {"Content-Length": str(len(body)), **(headers or {})}
        if status in {204, 304} or 100 <= status < 200:
            del fields["Content-Length"]
        if body:
            fields.setdefault("Content-Type", content_type)
        if not reusable:
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {status} {_reason(status)}", *(f"{name}: {value}" for name, value in fields.items())]
        text = "\r\n".join((*lines, "", "")).encode("latin-1", "replace")
        outgoing = Outgoing(self._sock, text if self.head.method == "HEAD" else text + body)
        try:
            if not outgoing.send():
                self.outgoing = outgoing
        except OSError:
            return False
        return reusable

    def begin_chunks(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of a response whose chunks the caller passes to `send`.

        Raises `RemoteDisconnected`, or `SourceStalled` if the client does not read.
        """
        if self.responded:
            raise InternalError("a request was answered twice")
        self.status = status
        lines = (f"HTTP/1.1 {status} {_reason(status)}", "Transfer-Encoding: chunked", *map(": ".join, headers.items()))
        self.send("\r\n".join((*lines, "", "")).encode("latin-1"))

    def send(self, data: bytes | memoryview) -> None:
        """Send a part of the response, and wait until the client reads it; raises as `begin_chunks` does."""
        self._connection.send(data)

    def respond_error(
        self, error: CdiError | Failure, status: int, *, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Respond with an error, as text or, if the client accepts it, as JSON."""
        if "application/json" in self.head.headers.get("accept", ""):
            document = {"code": error.code, "message": error.message, "retry": error.retry}
            body = json.dumps(document).encode() + b"\n"
            return self.respond(status, body, content_type="application/json", headers=headers)
        return self.respond(status, f"error[{error.code}]: {error.message}\n".encode(), headers=headers)

    def take_buffered(self) -> bytes:
        """Return and remove the bytes already received of the next request."""
        return self._connection.take_buffered()

    def end(self) -> None:
        """Release the eventfd when no thread reads the body any more."""
        with self._lock:
            if self._signal is not None:
                os.close(self._signal)
                self._signal = None

    def begin_close(self) -> bool:
        """Stop sending; return whether the caller must still drain and close the socket.

        Without draining, the client could lose the response (see `cdi.http.server.lingering_close`).
        """
        if self.responded:
            with contextlib.suppress(OSError, ValueError):
                # Shut down below TLS: the remaining input is discarded, so it need not be decrypted.
                socket.socket.shutdown(self._sock, socket.SHUT_WR)
                return True
        self._connection.close()
        return False

    def _at_end(self) -> bool:
        body = self._body
        return self.head.length == 0 if body is None else body.ended and body.reusable


def _reason(status: int) -> str:
    try:
        return _REASONS.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return "Refused"
