"""Listener on which a clone target accepts its source.

Any client that reaches the port may connect; one without a certificate of the right name occupies a bounded number of
threads for a bounded time. A newer source replaces an older one: it exists because its predecessor ended, even if that
one's connection is still open.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable

from cdi.api.errors import PeerUntrusted
from cdi.transfer.clone import frames
from cdi.transfer.clone.frames import Fail
from cdi.transfer.clone.peer_connection import LINGER_TIMEOUT, PeerConnection
from cdi.transfer.clone.tls import common_name

MAX_HANDSHAKES = 8
"""Maximum concurrent handshakes; further connections are closed, and clients retry."""
HANDSHAKE_TIMEOUT = 10.0


class PeerListener:
    """Listener with its own threads, active from its construction until `close`."""

    def __init__(self, port: int, context: ssl.SSLContext, client_name: str) -> None:
        """Listen on `port`, 0 for any free one; raise `OSError` if that fails."""
        self._context = context
        self._client_name = client_name
        self._free = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._came = threading.Condition()
        self._peer: tuple[ssl.SSLSocket, str] | None = None
        self._closed = False
        if socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._listener = socket.create_server(("", port))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._thread.start()

    def has_pending(self) -> bool:
        """Return whether an authenticated source is waiting."""
        return self._peer is not None

    def next(self, timeout: float, check: Callable[[], None]) -> tuple[ssl.SSLSocket, str] | None:
        """Return the newest source's connection and address, or None after `timeout` seconds.

        `check` is called periodically; what it raises is raised.
        """
        with self._came:
            while self._peer is None and timeout > 0:
                check()
                self._came.wait(min(timeout, 0.25))
                timeout -= 0.25
            peer, self._peer = self._peer, None
            return peer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join()
        self._listener.close()
        with self._came:
            self._closed = True
            peer, self._peer = self._peer, None
        if peer is not None:
            peer[0].close()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except ConnectionError:
                continue
            except OSError:
                return
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._accept_one, args=(connection, str(address[0])), name="handshake", daemon=True
            ).start()

    def _accept_one(self, connection: socket.socket, address: str) -> None:
        try:
            tls = self._authenticate(connection, address)
        finally:
            self._free.release()
        if tls is None:
            return
        with self._came:
            if self._closed:
                former: tuple[ssl.SSLSocket, str] | None = (tls, address)
            else:
                former, self._peer = self._peer, (tls, address)
                self._came.notify_all()
        if former is not None:
            former[0].close()

    def _authenticate(self, connection: socket.socket, address: str) -> ssl.SSLSocket | None:
        """Perform the handshake; close the connection and return None if the peer is not authorized."""
        try:
            # The timeout covers the whole handshake, so a slow client cannot extend it.
            connection.settimeout(HANDSHAKE_TIMEOUT)
            tls = self._context.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()
            return None
        name = common_name(tls)
        if self._client_name and name != self._client_name:
            refusal = PeerUntrusted(f"the certificate for {name[:200]!r} does not belong to a clone source")
            peer = PeerConnection(tls, address, stall=LINGER_TIMEOUT, check=lambda: None)
            # The peer may have sent its first frame already.
            peer.linger_close(frames.encode_message(Fail.of(refusal)))
            peer.close()
            return None
        return tls
