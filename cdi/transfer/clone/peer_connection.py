"""TLS connection between the ends of a clone, used by one thread at a time.

While one end writes, frames of the other may arrive: a target that zeroes a slow device reads nothing for minutes, but
sends keep-alives. OpenSSL connections are not thread-safe, so the writing thread also reads, into a small buffer that
is processed later.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable

from cdi.api.errors import CdiError, PeerProtocolError, PeerUnreachable
from cdi.transfer.clone.frames import HEADER_SIZE, Header, parse_header

CHUNK_SIZE = 64 << 10
"""Bytes per write; the stall timeout applies to each."""
MIN_WRITE = 64 << 10
"""Bytes, or the whole expected remainder, that must arrive within the stall timeout."""
_BOX = 64 << 10
"""Maximum bytes that are buffered while writing."""
LINGER_TIMEOUT = 5.0
"""Seconds for the other end to receive the final frame."""
_POLL_INTERVAL = 0.25
"""Interval in seconds at which cancellation is checked."""
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

    def __init__(self, tls: ssl.SSLSocket, clock: Callable[[], float] = time.monotonic) -> None:
        self._tls = tls
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
            info = self._tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TIMES_AT + _TIMES.size)
            busy, no_room = _TIMES.unpack_from(info, _TIMES_AT)
        except (OSError, struct.error):
            return self._waited
        return float(busy - no_room) / 1e6


class PeerConnection:
    """Connection to a peer.

    Methods raise `PeerUnreachable` if the peer disconnected or is silent, and what `check` raises while they wait.
    """

    def __init__(
        self,
        tls: ssl.SSLSocket,
        peer: str,
        *,
        stall: float,
        check: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.peer = peer
        self.sent = 0
        self.received = 0
        self.check = check
        self.narrow = NetworkBoundProbe(tls, clock)
        self._tls = tls
        self._stall = stall
        self._clock = clock
        self._inbox = bytearray()
        self._scratch = memoryview(bytearray(_BOX))
        self._poll = select.poll()
        self._poll.register(tls.fileno(), 0)
        tls.setblocking(False)
        with contextlib.suppress(OSError):
            tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._tls.close()

    def linger_close(self, words: bytes) -> None:
        """Send a final frame and read until the peer closes the connection; never raises.

        Closing a connection with unread data resets it, which can destroy the final frame.
        """
        until = self._clock() + LINGER_TIMEOUT
        with contextlib.suppress(CdiError):
            self.send(words)
            while True:
                while self._read(self._scratch):
                    if self._clock() > until:
                        return
                self._wait(select.POLLIN, until)

    # --- writing ------------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`, for any time as long as the peer accepts bytes or sends frames."""
        view = memoryview(data)
        while view:
            view = view[self._write(view[:CHUNK_SIZE]) :]

    def _write(self, piece: memoryview) -> int:
        until = self._clock() + self._stall
        while True:
            try:
                done = self._tls.send(piece)
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except OSError as error:
                raise self._lost(error) from error
            else:
                self.sent += done
                return done
            if len(self._inbox) < _BOX:
                wanted |= select.POLLIN
            if self._wait(wanted, until) & select.POLLIN and self._peek():
                until = self._clock() + self._stall

    # --- reading ------------------------------------------------------------------------------------------------

    def receive(self, view: memoryview, until: float | None = None) -> None:
        """Fill `view`, at the latest by `until` on the clock, if given."""
        boxed = min(len(view), len(self._inbox))
        view[:boxed] = self._inbox[:boxed]
        del self._inbox[:boxed]
        view = view[boxed:]
        limit = self._clock() + self._stall
        news = 0
        while view:
            got = self._read(view)
            if got:
                view = view[got:]
                news += got
                if news >= MIN_WRITE:
                    news, limit = 0, self._clock() + self._stall
                continue
            self._wait(select.POLLIN, limit if until is None else min(limit, until))

    def header(self, until: float | None = None) -> Header:
        """Receive the header of the next frame."""
        raw = bytearray(HEADER_SIZE)
        self.receive(memoryview(raw), until)
        return parse_header(raw)

    def body(self, head: Header, until: float | None = None) -> bytes:
        """Receive the body of a message or a shorter frame."""
        raw = bytearray(head.length)
        self.receive(memoryview(raw), until)
        return bytes(raw)

    def has_frame(self) -> bool:
        """Return without blocking whether a complete frame is buffered; only short frames are allowed."""
        self._peek()
        if len(self._inbox) < HEADER_SIZE:
            return False
        length = HEADER_SIZE + parse_header(self._inbox[:HEADER_SIZE]).length
        if length > _BOX:
            raise PeerProtocolError("unexpected long frame")
        return len(self._inbox) >= length

    def _peek(self) -> int:
        """Buffer the available bytes and return their number."""
        piece = self._scratch[: _BOX - len(self._inbox)]
        came = 0
        while came < len(piece) and (got := self._read(piece[came:])):
            came += got
        self._inbox += piece[:came]
        return came

    def _read(self, view: memoryview) -> int:
        try:
            got = self._tls.recv_into(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise self._lost(error) from error
        if not got:
            raise PeerUnreachable("peer closed the connection", where=self.peer)
        self.received += got
        return got

    # --- waiting ------------------------------------------------------------------------------------------------

    def _wait(self, events: int, until: float) -> int:
        self._poll.modify(self._tls.fileno(), events)
        while True:
            self.check()
            left = until - self._clock()
            if left <= 0:
                raise PeerUnreachable(f"no data from the peer for {self._stall:.0f} s", where=self.peer)
            for _, found in self._poll.poll(min(left, _POLL_INTERVAL) * 1000):
                return found

    def _lost(self, error: OSError) -> CdiError:
        # An SSLError has a reason, any other error the kernel's text.
        text = getattr(error, "reason", None) or error.strerror or type(error).__name__
        return PeerUnreachable(f"connection lost: {text}", where=self.peer)
