"""One TLS connection between the ends of a clone, used by one thread at a time.

A connection that is being written to may have words of the other end waiting: a target that zeroes a slow device does
not read for minutes and says that it is still there.  OpenSSL's connections are not for two threads at once, so whoever
writes also reads, into a small box that is opened later.
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
from cdi.transfer.copy.frames import HEADER_SIZE, Header, parse_header

PIECE = 64 << 10
"""Written at once, bytes; each has the stall time-out."""
LEAST = 64 << 10
"""As many bytes, or the whole of what is awaited, have to come within the stall time-out."""
_BOX = 64 << 10
"""The most that is kept of what came while something was written, bytes."""
PART_SECONDS = 5.0
"""For the other end to hear the last words."""
_LOOK = 0.25
"""Seconds until it is seen that the work was stopped."""
_WINDOW = 0.1
"""Seconds that are judged together."""
_TIMES_AT = 168
_TIMES = struct.Struct("=QQ")
"""Of ``tcpi_busy_time`` and ``tcpi_rwnd_limited``, microseconds."""


class Narrow:
    """Whether the network is what a connection waits for; neither the program that sends, nor the one that receives.

    The kernel counts for how long a connection had something to send, and for how long of that the other end had no
    room for it (``struct tcp_info``, from Linux 4.10 on).
    """

    def __init__(self, tls: ssl.SSLSocket, clock: Callable[[], float] = time.monotonic) -> None:
        self._tls = tls
        self._clock = clock
        self._looked = clock()
        self._waited = 0.0
        self._narrow = False

    def __call__(self) -> bool:
        """Of the last `_WINDOW` seconds, as far as it is known.  Any thread may ask."""
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


class Line:
    """Raises `PeerUnreachable` for a peer that is gone or silent, and what `check` raises while it waits."""

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
        self.narrow = Narrow(tls, clock)
        self._tls = tls
        self._stall = stall
        self._clock = clock
        self._box = bytearray()
        self._scratch = memoryview(bytearray(_BOX))
        self._poll = select.poll()
        self._poll.register(tls.fileno(), 0)
        tls.setblocking(False)
        with contextlib.suppress(OSError):
            tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._tls.close()

    def part(self, words: bytes) -> None:
        """Say the last words, and hear the other end out until it hangs up: nothing is raised.

        A connection that is closed while something comes is reset, and the last words are lost with it.
        """
        until = self._clock() + PART_SECONDS
        with contextlib.suppress(CdiError):
            self.send(words)
            while True:
                while self._read(self._scratch):
                    if self._clock() > until:
                        return
                self._wait(select.POLLIN, until)

    # --- writing ------------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> None:
        """All of it.  It may take any time as long as something is taken, or the peer says anything."""
        view = memoryview(data)
        while view:
            view = view[self._write(view[:PIECE]) :]

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
            if len(self._box) < _BOX:
                wanted |= select.POLLIN
            if self._wait(wanted, until) & select.POLLIN and self._peek():
                until = self._clock() + self._stall

    # --- reading ------------------------------------------------------------------------------------------------

    def receive(self, view: memoryview, until: float | None = None) -> None:
        """Fill `view`; not later than `until` on the clock, where that is given."""
        boxed = min(len(view), len(self._box))
        view[:boxed] = self._box[:boxed]
        del self._box[:boxed]
        view = view[boxed:]
        limit = self._clock() + self._stall
        news = 0
        while view:
            got = self._read(view)
            if got:
                view = view[got:]
                news += got
                if news >= LEAST:
                    news, limit = 0, self._clock() + self._stall
                continue
            self._wait(select.POLLIN, limit if until is None else min(limit, until))

    def header(self, until: float | None = None) -> Header:
        """Of the next frame."""
        raw = bytearray(HEADER_SIZE)
        self.receive(memoryview(raw), until)
        return parse_header(raw)

    def body(self, head: Header, until: float | None = None) -> bytes:
        """Of a frame that is a document or shorter."""
        raw = bytearray(head.length)
        self.receive(memoryview(raw), until)
        return bytes(raw)

    def waiting(self) -> bool:
        """Whether a whole frame has come; it is not waited for.  Only short ones are looked for this way."""
        self._peek()
        if len(self._box) < HEADER_SIZE:
            return False
        length = HEADER_SIZE + parse_header(self._box[:HEADER_SIZE]).length
        if length > _BOX:
            raise PeerProtocolError("a long frame where an answer is expected")
        return len(self._box) >= length

    def _peek(self) -> int:
        """Put into the box what is there; gives the number of bytes."""
        piece = self._scratch[: _BOX - len(self._box)]
        came = 0
        while came < len(piece) and (got := self._read(piece[came:])):
            came += got
        self._box += piece[:came]
        return came

    def _read(self, view: memoryview) -> int:
        try:
            got = self._tls.recv_into(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise self._lost(error) from error
        if not got:
            raise PeerUnreachable("the other end hung up", where=self.peer)
        self.received += got
        return got

    # --- waiting ------------------------------------------------------------------------------------------------

    def _wait(self, events: int, until: float) -> int:
        self._poll.modify(self._tls.fileno(), events)
        while True:
            self.check()
            left = until - self._clock()
            if left <= 0:
                raise PeerUnreachable(f"nothing was heard for {self._stall:.0f} s", where=self.peer)
            for _, found in self._poll.poll(min(left, _LOOK) * 1000):
                return found

    def _lost(self, error: OSError) -> CdiError:
        # An SSLError names a reason, any other the kernel's words.
        text = getattr(error, "reason", None) or error.strerror or type(error).__name__
        return PeerUnreachable(f"the connection broke: {text}", where=self.peer)
