"""TLS inside TLS: a socket whose bytes travel through an encrypted connection to a proxy.

OpenSSL's file descriptor interface cannot wrap one TLS connection in another. A thread therefore copies between the
connection to the proxy and one end of a socket pair, and the other end takes its place: the TLS connection to the
source, its timeouts and its interruption work on that end as on any socket.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from typing import Final

_PIECE: Final = 64 << 10


def relay(encrypted: ssl.SSLSocket) -> socket.socket:
    """Return a socket that is connected to the peer of `encrypted`, and close `encrypted` when that socket is closed.

    Raises:
        OSError: There are no file descriptors or threads left; `encrypted` stays open.

    """
    near, far = socket.socketpair()
    try:
        copying = threading.Thread(target=_Relay(far, encrypted).run, name="tls-relay", daemon=True)
        copying.start()
    except RuntimeError as error:
        near.close()
        far.close()
        raise OSError("cannot start a thread") from error
    return near


class _Relay:
    """Copies in both directions, holding at most one piece of each, until either side ends."""

    def __init__(self, plain: socket.socket, encrypted: ssl.SSLSocket) -> None:
        self._plain = plain
        self._encrypted = encrypted
        self._up = b""
        """Received from the plain side and not yet sent."""
        self._down = b""
        self._reads_to_write = False
        """Whether TLS has to receive before it can send."""

    def run(self) -> None:
        with self._plain, self._encrypted, contextlib.suppress(OSError):
            self._plain.setblocking(False)
            self._encrypted.setblocking(False)
            while True:
                went_up, went_down = self._copy_up(), self._copy_down()
                if went_up is None or went_down is None:
                    return
                if not went_up and not went_down and not self._wait():
                    return

    def _copy_up(self) -> bool | None:
        """Copy a piece to the proxy; return whether anything was copied, None at the end."""
        if not self._up:
            try:
                self._up = self._plain.recv(_PIECE)
            except BlockingIOError:
                return False
            if not self._up:
                return None
        self._reads_to_write = False
        try:
            sent = self._encrypted.send(self._up)
        except ssl.SSLWantReadError:
            self._reads_to_write = True
            return False
        except ssl.SSLWantWriteError:
            return False
        self._up = self._up[sent:]
        return True

    def _copy_down(self) -> bool | None:
        """Copy a piece from the proxy; return whether anything was copied, None at the end."""
        if not self._down:
            try:
                self._down = self._encrypted.recv(_PIECE)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            if not self._down:
                return None
        try:
            sent = self._plain.send(self._down)
        except BlockingIOError:
            return False
        self._down = self._down[sent:]
        return True

    def _wait(self) -> bool:
        """Wait until something can be copied; return False if the plain side was closed.

        A side is watched for input only while there is room for it: a slow reader must not keep this thread busy.
        """
        poller = select.poll()
        poller.register(self._plain, (0 if self._up else select.POLLIN) | (select.POLLOUT if self._down else 0))
        reads = self._reads_to_write or not self._down
        events = (select.POLLIN if reads else 0) | (select.POLLOUT if self._up and not self._reads_to_write else 0)
        if events:
            poller.register(self._encrypted, events)
        found = dict(poller.poll())
        return not found.get(self._plain.fileno(), 0) & select.POLLHUP
