"""Answers that their clients have not taken yet: sent on by the thread that waits for all clients, within bounds.

No request's thread waits for a client to read.  What the socket does not take at once is kept here with a deadline for
all of it, and where there is too much, what has been here longest is given up; of clients that showed nothing to prove
who they are first.  A client that never reads therefore costs some memory for some seconds, and nobody's turn.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

GRACE = 8.0
"""Seconds that any answer may take."""
SLOWEST = 16 << 10
"""Bytes per second for which an answer may take longer than that."""
MAX_ANSWERS = 500
MAX_BYTES = 64 << 20
"""Of all of them together."""
_RECORD = 16 << 10
"""Bytes given to the socket at once: a TLS record."""
_AT_ONCE = 256 << 10
"""Bytes after which others have their turn."""
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER: reset the connection and free what it has buffered; the client would not take it."""


class Outgoing:
    """An answer on its way; never waits.  Used by one thread at a time."""

    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self._sock = sock
        self._data = memoryview(data)
        self.events = selectors.EVENT_WRITE
        """What has to happen to the socket before there is any use in `send`."""

    @property
    def size(self) -> int:
        """Bytes that are still to be sent."""
        return len(self._data)

    def send(self) -> bool:
        """Send what the socket takes now; True when nothing is left.  Raises `OSError` when the client is gone."""
        self._sock.settimeout(0)
        left = _AT_ONCE
        while self._data and left > 0:
            try:
                # After SSLWantWriteError OpenSSL has to be given the same bytes again: the same number from the same
                # place on.
                count = self._sock.send(self._data[:_RECORD])
            except (BlockingIOError, ssl.SSLWantWriteError):
                self.events = selectors.EVENT_WRITE
                return False
            except ssl.SSLWantReadError:
                self.events = selectors.EVENT_READ
                return False
            self._data = self._data[count:]
            left -= count
        return not self._data


@dataclass(eq=False, slots=True, kw_only=True)
class PendingAnswer:
    """One of them."""

    sock: socket.socket
    outgoing: Outgoing
    until: float
    size: int
    """Bytes that count, for as long as it is here."""
    verified: bool
    """The client has shown who it is."""
    sent: Callable[[], None]
    """Called when all of it is sent, and not when it is given up."""


class PendingAnswers:
    """All of them.  Used by the thread of the selector; `count` by any."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        grace: float = GRACE,
        slowest: float = SLOWEST,
        max_answers: int = MAX_ANSWERS,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._selector = selector
        self._grace, self._slowest = grace, slowest
        self._max_answers, self._max_bytes = max_answers, max_bytes
        self._clock = clock
        self._answers: dict[PendingAnswer, None] = {}
        self._bytes = 0

    @property
    def count(self) -> int:
        return len(self._answers)

    def add(self, sock: socket.socket, outgoing: Outgoing, *, verified: bool, sent: Callable[[], None]) -> None:
        """Take over a socket and what is to be sent to it."""
        answer = PendingAnswer(
            sock=sock,
            outgoing=outgoing,
            until=self._clock() + self._grace + outgoing.size / self._slowest,
            size=outgoing.size,
            verified=verified,
            sent=sent,
        )
        try:
            self._selector.register(sock, outgoing.events, answer)
        except (OSError, ValueError):
            sock.close()
            return
        self._answers[answer] = None
        self._bytes += answer.size
        while self._answers and (len(self._answers) > self._max_answers or self._bytes > self._max_bytes):
            self.give_one_up()

    def send(self, answer: PendingAnswer) -> None:
        """The socket is ready for more."""
        if answer not in self._answers:
            return
        try:
            done = answer.outgoing.send()
        except OSError:
            self._give_up(answer)
            return
        if done:
            self._forget(answer)
            answer.sent()
        else:
            self._selector.modify(answer.sock, answer.outgoing.events, answer)

    def expire(self) -> None:
        """Give up those whose time is over."""
        now = self._clock()
        for answer in [one for one in self._answers if one.until < now]:
            self._give_up(answer)

    def give_one_up(self) -> bool:
        """Make room; False where there is none to give up."""
        answer = next((one for one in self._answers if not one.verified), next(iter(self._answers), None))
        if answer is not None:
            self._give_up(answer)
        return answer is not None

    def end(self) -> None:
        for answer in list(self._answers):
            self._give_up(answer)

    def _forget(self, answer: PendingAnswer) -> None:
        del self._answers[answer]
        self._bytes -= answer.size
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(answer.sock)

    def _give_up(self, answer: PendingAnswer) -> None:
        self._forget(answer)
        with contextlib.suppress(OSError):
            answer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        with contextlib.suppress(OSError):
            answer.sock.close()
