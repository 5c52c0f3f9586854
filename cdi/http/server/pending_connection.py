"""A connection between its acceptance, or its last response, and the end of its next request head."""

from __future__ import annotations

import enum
import ssl
import time
from dataclasses import dataclass, field

from cdi.http.server.request_head import MAX_HEAD, split

IDLE_TIMEOUT = 60.0
"""Seconds between two requests of one connection."""


class ConnectionState(enum.Enum):
    """State of a connection without a request."""

    HANDSHAKE = "TLS handshake"
    HEAD = "receiving a head"
    IDLE = "idle"
    """A response was sent, and nothing has been received since."""


@dataclass(eq=False, slots=True, kw_only=True)
class PendingConnection:
    """A connection whose request head is being received, without blocking."""

    sock: ssl.SSLSocket
    until: float
    """The deadline, as a `time.monotonic` value."""
    state: ConnectionState = ConnectionState.HANDSHAKE
    data: bytearray = field(default_factory=bytearray)
    """The bytes that are received but not processed."""
    unverified: int = 0
    """The number of requests since the last one with authentication."""

    def receive(self, head_seconds: float) -> bool:
        """Receive what is there, after the handshake; return False if the client has closed the connection.

        Returns True once the head is complete or has `MAX_HEAD` bytes, for which the client has `head_seconds`.

        Raises:
            ssl.SSLWantReadError: More has to arrive.
            ssl.SSLWantWriteError: The handshake has to send more.
            OSError: The connection failed.
        """
        if self.state is ConnectionState.HANDSHAKE:
            self.sock.do_handshake()
            self.state = ConnectionState.HEAD
        while split(self.data) is None and len(self.data) < MAX_HEAD:
            piece = self.sock.recv(MAX_HEAD - len(self.data))
            if not piece:
                return False
            if self.state is ConnectionState.IDLE:
                self.state, self.until = ConnectionState.HEAD, time.monotonic() + head_seconds
            self.data += piece
        return True

    def await_next(self, data: bytes) -> None:
        """Wait for the next request, of which `data` has been received; raise `OSError` if the connection failed."""
        self.data = bytearray(data)
        self.state = ConnectionState.HEAD if data else ConnectionState.IDLE
        self.until = time.monotonic() + IDLE_TIMEOUT
        self.sock.setblocking(False)
