"""HTTPS server with the status of a worker.

It only answers ``GET`` requests for known paths, and only reads their first line. Any client that reaches the pod may
send one, so the number of connections, the size of a request and its duration are limited.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_CLIENTS = 8
"""Maximum number of concurrent clients; further connections are closed."""
MAX_REQUEST = 8192
"""Maximum size of a request's header section in bytes."""
REQUEST_DEADLINE = 5.0
"""Seconds that a client has from its connection to the end of the response."""
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Content type and body of a response."""

    content_type: str
    body: bytes


class Server:
    """Server with threads of its own, which listens from its creation until `close`."""

    def __init__(self, port: int, context: ssl.SSLContext, answers: Mapping[str, Callable[[], Response]]) -> None:
        """Start to listen.

        Args:
            port: The port to listen on; 0 for any free one.
            context: TLS settings with the certificate.
            answers: Functions by path, called for each request's response.

        Raises:
            OSError: The port cannot be opened.

        """
        self._context = context
        self._answers = answers
        self._free = threading.BoundedSemaphore(MAX_CLIENTS)
        if socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._listener = socket.create_server(("", port))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="serve", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting connections; responses in progress are still sent."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except ConnectionError:
                continue
            except OSError:
                return
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._converse, args=(connection,), name="answer", daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):  # an error of the client; includes ssl.SSLError
                until = time.monotonic() + REQUEST_DEADLINE
                connection.settimeout(REQUEST_DEADLINE)
                with self._context.wrap_socket(connection, server_side=True) as tls:
                    head = _head(tls, until)
                    if head is not None:
                        tls.sendall(self._answer(head))
        finally:
            self._free.release()

    def _answer(self, head: bytes) -> bytes:
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _message(400)
        if words[0] != b"GET":
            return _message(405)
        make = self._answers.get(words[1].partition(b"?")[0].decode("latin-1"))
        return _message(404) if make is None else _message(200, make())


def _head(tls: ssl.SSLSocket, until: float) -> bytes | None:
    """Return a request up to its empty line; None if the client does not send that much in time."""
    head = b""
    while b"\r\n\r\n" not in head:
        left = until - time.monotonic()
        if left <= 0 or len(head) > MAX_REQUEST:
            return None
        tls.settimeout(left)
        piece = tls.recv(MAX_REQUEST)
        if not piece:
            return None
        head += piece
    tls.settimeout(max(until - time.monotonic(), 0.1))
    return head


def _message(status: int, answer: Response | None = None) -> bytes:
    reason = _REASONS[status]
    answer = answer or Response(content_type="text/plain", body=f"{reason}\n".encode())
    fields = {
        "Content-Type": answer.content_type,
        "Content-Length": len(answer.body),
        "Cache-Control": "no-store",
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + answer.body
