"""Serving requests on a connection that this process has opened: the server connects, the client listens.

So a client behind a network policy can be served that admits connections from the server only. Both ends have verified
each other's certificate in the handshake, so one connection has one thread, unlike those of `HttpListener`.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence

from cdi.api.errors import UploadMalformed
from cdi.http.connection import RemoteDisconnected
from cdi.http.server.request import ServerRequest
from cdi.http.server.request_head import MAX_HEAD, parse, split

_POLL_INTERVAL = 0.25
"""Seconds after which `check` is called again."""
Pieces = Sequence[bytes | memoryview]


def serve_connection(
    sock: ssl.SSLSocket,
    respond: Callable[[ServerRequest], bool],
    *,
    stall_timeout: float,
    check: Callable[[], None],
) -> None:
    """Serve requests, one after the other, until the client closes the connection or `respond` returns False.

    Args:
        sock: The connection; the caller closes it.
        respond: Sends the response to a request, and returns whether the connection may carry another one.
        stall_timeout: Seconds without a byte after which a client that has begun a request, or does not read the
            response, is given up. It may take any time to begin a request.
        check: Called while waiting; what it raises is raised.

    Raises:
        RemoteDisconnected: The connection failed.
        SourceError: Reading the body of a request failed.
        UploadMalformed: The client does not send HTTP.
    """
    data = bytearray()
    while True:
        parts = _next_head(sock, data, stall_timeout, check)
        if parts is None:
            return
        request = ServerRequest(sock, parse(parts[0]), parts[1], stall_timeout=stall_timeout, where="the client")
        try:
            again = respond(request)
            while request.outgoing is not None and not request.outgoing.send():
                _await(sock, request.outgoing.events, stall_timeout)
        except OSError as error:
            raise RemoteDisconnected(error.strerror or type(error).__name__) from error
        finally:
            request.end()
        if not again:
            return
        data = bytearray(request.take_buffered())


def _next_head(
    sock: ssl.SSLSocket, data: bytearray, stall_timeout: float, check: Callable[[], None]
) -> tuple[bytes, bytes] | None:
    """Return the head of the next request and what follows it; None if the client has closed the connection."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    sock.settimeout(0)
    until: float | None = None
    while (parts := split(data)) is None:
        check()
        if len(data) >= MAX_HEAD:
            raise UploadMalformed(f"the request head exceeds {MAX_HEAD} bytes", status=431)
        if data and until is None:
            until = time.monotonic() + stall_timeout
        if until is not None and time.monotonic() > until:
            raise RemoteDisconnected("the client did not complete its request")
        try:
            piece = sock.recv(MAX_HEAD - len(data))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            poller.poll(_POLL_INTERVAL * 1000)
            continue
        except OSError as error:
            raise RemoteDisconnected(error.strerror or type(error).__name__) from error
        if not piece:
            return None
        data += piece
    return parts


def _await(sock: socket.socket, events: int, seconds: float) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLIN if events & 1 else select.POLLOUT)
    if not poller.poll(seconds * 1000):
        raise TimeoutError("the client does not read")


class ChunkedResponse:
    """A response of unknown length (RFC 9112, section 7.1), sent by a thread that waits for the client to read it."""

    def __init__(self, request: ServerRequest, status: int, headers: Mapping[str, str]) -> None:
        """Send the head; raise `RemoteDisconnected`, or `SourceStalled` if the client does not read."""
        self.sent = 0
        """Bytes of content sent so far."""
        self._request = request
        self._unsent = b""
        """End of the chunk before, which is sent with the beginning of the next one."""
        request.begin_chunks(status, headers)

    def write(self, pieces: Pieces, *, sending: Callable[[memoryview], int] = len) -> None:
        """Send one chunk, which is not empty; raise as the constructor does.

        `sending` returns how many bytes of a view to send at once, and may wait.
        """
        size = sum(map(len, pieces))
        small = self._unsent + b"%x\r\n" % size
        for piece in pieces:
            if isinstance(piece, bytes):
                small += piece
                continue
            self._request.send(small)
            small, rest = b"", piece
            while rest:
                count = sending(rest)
                self._request.send(rest[:count])
                self.sent += count
                rest = rest[count:]
        self._unsent = b"\r\n"
        if small:
            self._request.send(small)

    def end(self) -> bool:
        """Send the last chunk; return whether the connection may carry another request."""
        self._request.send(self._unsent + b"0\r\n\r\n")
        return self._request.head.keep_alive
