"""Clients that were answered and hung up on: each is listened to until it hangs up itself.

A connection that is closed while its client still sends is reset, and the client may lose its answer with it; many
programs look for one only when they have sent everything.  So what still comes is taken in and thrown away, within
bounds, by the thread that waits for all the others.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

LONGEST = 60.0
"""Seconds that a client may go on sending."""
QUIET = 5.0
"""Seconds without a byte after which it counts as gone."""
MOST = 500
"""When there are more, the one that has been here longest is cut off."""
_PIECE = 1 << 20


@dataclass(eq=False, slots=True, kw_only=True)
class Leaver:
    """One of them; what it says is cipher text, as the TLS connection has ended."""

    sock: socket.socket
    until: float
    heard: float


class Farewells:
    """All of them.  Used by the thread of the selector; `count` by any."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        longest: float = LONGEST,
        quiet: float = QUIET,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._selector = selector
        self._longest, self._quiet, self._most = longest, quiet, most
        self._clock = clock
        self._leavers: dict[Leaver, None] = {}
        self._buffer = bytearray(_PIECE)

    @property
    def count(self) -> int:
        return len(self._leavers)

    def take(self, sock: socket.socket) -> None:
        """Take over a socket that nothing more is sent to."""
        if len(self._leavers) >= self._most:
            self.cut_one_off()
        now = self._clock()
        leaver = Leaver(sock=sock, until=now + self._longest, heard=now)
        try:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, leaver)
        except (OSError, ValueError):
            sock.close()
            return
        self._leavers[leaver] = None

    def hear(self, leaver: Leaver) -> None:
        """It has something to say, or has hung up."""
        if leaver not in self._leavers:
            return
        try:
            # Not copied out of the kernel where that knows how (tcp(7)).
            count = socket.socket.recv_into(leaver.sock, self._buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count:
            leaver.heard = self._clock()
        else:
            self._close(leaver)

    def look(self) -> None:
        """Hang up on those whose time is over."""
        now = self._clock()
        for leaver in [one for one in self._leavers if one.until < now or one.heard + self._quiet < now]:
            self._close(leaver)

    def cut_one_off(self) -> None:
        """Make room, where there is anybody: the one that has been here longest goes."""
        if self._leavers:
            self._close(next(iter(self._leavers)))

    def end(self) -> None:
        for leaver in list(self._leavers):
            self._close(leaver)

    def _close(self, leaver: Leaver) -> None:
        del self._leavers[leaver]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(leaver.sock)
        with contextlib.suppress(OSError):
            leaver.sock.close()
