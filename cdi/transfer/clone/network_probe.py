"""Detector of connections that the network limits, for which compression pays off."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

_WINDOW = 0.1
"""Length of a measurement in seconds."""
_TIMES_AT = 168
_TIMES = struct.Struct("=QQ")
"""Fields ``tcpi_busy_time`` and ``tcpi_rwnd_limited``, in microseconds."""


class NetworkBoundProbe:
    """Detector of connections that the network limits, and neither the sender nor the receiver.

    The kernel counts for how long a connection had data to send, and for how much of that the receive window was full
    (``struct tcp_info``, since Linux 4.10).
    """

    def __init__(self, sock: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._sock = sock
        self._clock = clock
        self._looked = clock()
        self._waited = 0.0
        self._narrow = False

    def __call__(self) -> bool:
        """Return whether the network limited the last `_WINDOW` seconds, if known; callable from any thread."""
        now = self._clock()
        since = now - self._looked
        if since >= _WINDOW:
            self._looked = now
            waited = self._seconds()
            self._narrow = waited - self._waited > since / 2
            self._waited = waited
        return self._narrow

    def _seconds(self) -> float:
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TIMES_AT + _TIMES.size)
            busy, no_room = _TIMES.unpack_from(info, _TIMES_AT)
        except (OSError, struct.error):
            return self._waited
        return float(busy - no_room) / 1e6
