"""Connections that a clone's source opens to its target, which sends its requests on them.

The worker that reads a volume connects to those that fill others, because only it knows their addresses. Any client
that reaches the port may connect; one without a certificate of the right name occupies a bounded number of threads for
a bounded time. A source has one connection, and a new one replaces it: the source that opened it has ended, even if the
connection is still open.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from typing import Final

from cdi.api.errors import CdiError, InternalError, PeerUnreachable, PeerUntrusted, SourceUnreachable
from cdi.api.peer import PeerSourceSpec
from cdi.http.connection import Connection, ConnectionPool, RemoteDisconnected
from cdi.http.dialer import SocketCanceller
from cdi.http.message import Response, read_response, request_bytes
from cdi.http.mutual_tls import common_name, server_context
from cdi.http.sockets import detect_lost_peer, listen
from cdi.http.url import Url
from cdi.source.peer_messages import PeerResult

LOG = logging.getLogger(__name__)
MAX_HANDSHAKES: Final = 8
"""Maximum concurrent handshakes; further connections are closed, and clients retry."""
HANDSHAKE_TIMEOUT: Final = 10.0
REFUSAL_TIMEOUT: Final = 5.0
"""Seconds for a refused client to receive the reason."""
WHERE: Final = "the source pod"
_URL: Final = Url.parse("https://clone-source/")
_POLL_INTERVAL: Final = 0.25


class PeerConnections:
    """Listener with its own threads, and a pool of what it accepted; active from its construction until `close`."""

    def __init__(self, spec: PeerSourceSpec, *, stall_timeout: float) -> None:
        """Listen on the port.

        Raises:
            PeerUntrusted: The certificate cannot be used.
            InternalError: The port cannot be opened.
        """
        self._context = server_context(spec.tls)
        self._client_name = spec.client_name
        self._patience = spec.patience
        self._stall = stall_timeout
        self._handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._pool = ConnectionPool()
        self._changed = threading.Condition()
        self._live: Connection | None = None
        """The source's connection; it may be closed."""
        self._lost_at = time.monotonic()
        """When a source was last known to be connected."""
        self._closed = False
        try:
            self._listener = listen(spec.port)
        except OSError as error:
            raise InternalError(f"cannot listen on port {spec.port}: {error.strerror}") from error
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._thread.start()

    def exchange(
        self, method: str, target: str, headers: tuple[tuple[str, str], ...], cancel: SocketCanceller, body: bytes = b""
    ) -> Response:
        """Send a request over a free connection, and return the response, which the caller passes to `release`.

        Waits for a connection if there is none.

        Raises:
            PeerUnreachable: No source has connected for its `patience`.
            Interrupted: `cancel` was cancelled.
            SourceError: The connection failed.
        """
        if body:
            headers = (*headers, ("Content-Length", str(len(body))))
        data = request_bytes(method, target, _URL.authority, headers) + body
        connection = self._acquire(cancel)
        try:
            connection.acquire(cancel, where=WHERE)
            connection.send(data)
            response = read_response(connection, _URL, method=method)
        except RemoteDisconnected as error:
            self._discard(connection)
            raise SourceUnreachable(f"connection lost: {error}", where=WHERE) from error
        except BaseException:
            self._discard(connection)
            raise
        LOG.debug("%s %s: %d", method, target, response.status)
        return response

    def release(self, response: Response) -> None:
        """Release a response; its connection is used again if it was read to its end."""
        if response.drain():
            self._pool.release(response.connection)
            with self._changed:
                self._changed.notify()
        else:
            self._discard(response.connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join()
        self._listener.close()
        with self._changed:
            self._closed = True
        self._pool.close()

    def _acquire(self, cancel: SocketCanceller) -> Connection:
        with self._changed:
            while True:
                cancel.check()
                connection = self._pool.acquire(None)
                if connection is not None:
                    return connection
                now = time.monotonic()
                if self._live is not None and self._live.is_open:
                    self._lost_at = now
                elif now - self._lost_at >= self._patience:
                    raise PeerUnreachable(f"no source connected for {self._patience:.0f} s")
                self._changed.wait(_POLL_INTERVAL)

    def _discard(self, connection: Connection) -> None:
        self._pool.discard(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except ConnectionError:
                continue
            except OSError:
                return
            if not self._handshakes.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._accept_one, args=(connection, str(address[0])), name="handshake", daemon=True
            ).start()

    def _accept_one(self, plain: socket.socket, address: str) -> None:
        try:
            tls = self._authenticate(plain)
        finally:
            self._handshakes.release()
        if tls is None:
            return
        LOG.debug("the source connected from %s", address)
        connection = Connection(tls, None, stall_timeout=self._stall, where=WHERE)
        with self._changed:
            if self._closed:
                connection.close()
                return
            if self._live is not None and self._live.is_open:
                self._live.shutdown()
            self._live = connection
            self._pool.add(connection)
            self._pool.release(connection)
            self._changed.notify()

    def _authenticate(self, plain: socket.socket) -> ssl.SSLSocket | None:
        """Perform the handshake; close the connection and return None if the peer is not authorized."""
        try:
            # The timeout covers the whole handshake, so a slow client cannot extend it.
            plain.settimeout(HANDSHAKE_TIMEOUT)
            detect_lost_peer(plain)
            tls = self._context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False)
        except OSError:
            plain.close()
            return None
        name = common_name(tls)
        if self._client_name and name != self._client_name:
            _refuse(tls, PeerUntrusted(f"the certificate for {name[:200]!r} does not belong to a clone source"))
            return None
        return tls


def _refuse(tls: ssl.SSLSocket, error: CdiError) -> None:
    """Send the reason as a request, and read until the peer closes the connection.

    Closing a connection with unread data resets it, which can destroy what was sent.
    """
    body = PeerResult.of(error).to_json().encode()
    request = request_bytes("POST", "/refused/result", _URL.authority, (("Content-Length", str(len(body))),)) + body
    scratch, until = bytearray(1 << 16), time.monotonic() + REFUSAL_TIMEOUT
    with contextlib.suppress(OSError):
        tls.settimeout(REFUSAL_TIMEOUT)
        tls.sendall(request)
        socket.socket.shutdown(tls, socket.SHUT_WR)
        while time.monotonic() < until and tls.recv_into(scratch):
            pass
    tls.close()
