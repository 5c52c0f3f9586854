"""Lingering close: discard request bytes that arrive after the response was sent.

Closing a socket with unread input makes the kernel send RST, which can destroy the response before the client reads it
(RFC 9112, section 9.6); many clients read a response only after sending the whole request. Sockets are therefore
half-closed and drained on the selector thread, bounded by `LINGER_TIME`, `LINGER_TIMEOUT` and `MAX_LINGERING` (compare
nginx's lingering_close).
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

LINGER_TIME = 60.0
"""Seconds after which a client that still sends is disconnected."""
LINGER_TIMEOUT = 5.0
"""Seconds without received data after which a client counts as gone."""
MAX_LINGERING = 500
"""The maximum number of lingering sockets; beyond it the oldest is closed."""
_CHUNK_SIZE = 1 << 20


@dataclass(eq=False, slots=True, kw_only=True)
class LingeringSocket:
    """A lingering socket; its input is not decrypted, as the TLS connection has ended."""

    sock: socket.socket
    until: float
    heard: float


class LingeringCloser:
    """All lingering sockets; used by the selector's thread, except for `count`, which is thread-safe."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        longest: float = LINGER_TIME,
        quiet: float = LINGER_TIMEOUT,
        most: int = MAX_LINGERING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._selector = selector
        self._longest, self._quiet, self._most = longest, quiet, most
        self._clock = clock
        self._leavers: dict[LingeringSocket, None] = {}
        self._buffer = bytearray(_CHUNK_SIZE)

    @property
    def count(self) -> int:
        return len(self._leavers)

    def take(self, sock: socket.socket) -> None:
        """Take ownership of a socket to which nothing more is sent."""
        if len(self._leavers) >= self._most:
            self.cut_one_off()
        now = self._clock()
        leaver = LingeringSocket(sock=sock, until=now + self._longest, heard=now)
        try:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, leaver)
        except (OSError, ValueError):
            sock.close()
            return
        self._leavers[leaver] = None

    def on_readable(self, leaver: LingeringSocket) -> None:
        """Discard the available input, or close the socket at the end of file."""
        if leaver not in self._leavers:
            return
        try:
            # With MSG_TRUNC, TCP discards the data without copying it (tcp(7)).
            count = socket.socket.recv_into(leaver.sock, self._buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count:
            leaver.heard = self._clock()
        else:
            self._close(leaver)

    def expire(self) -> None:
        """Close the sockets whose time limits have passed."""
        now = self._clock()
        for leaver in [one for one in self._leavers if one.until < now or one.heard + self._quiet < now]:
            self._close(leaver)

    def cut_one_off(self) -> None:
        """Close the oldest lingering socket, if any, to free its resources."""
        if self._leavers:
            self._close(next(iter(self._leavers)))

    def end(self) -> None:
        for leaver in list(self._leavers):
            self._close(leaver)

    def _close(self, leaver: LingeringSocket) -> None:
        del self._leavers[leaver]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(leaver.sock)
        with contextlib.suppress(OSError):
            leaver.sock.close()
