"""Responses that clients have not fully read, sent by the selector thread within limits.

No request's thread waits for a client to read. What the socket does not accept at once is kept here with one deadline
for all of it. Above the limits the oldest response is dropped, those of unverified clients first. A client that never
reads therefore costs some memory for some seconds, but no thread.
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

GRACE_PERIOD = 8.0
"""Seconds allowed for sending any response."""
SLOWEST = 16 << 10
"""A transfer rate in bytes per second; the time for a response at this rate is added to `GRACE_PERIOD`."""
MAX_ANSWERS = 500
MAX_BYTES = 64 << 20
"""The maximum size of all pending responses together, in bytes."""
_RECORD = 16 << 10
"""The bytes passed to the socket in one call: one TLS record."""
_MAX_WRITE = 256 << 10
"""The bytes after which other connections are served."""
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER with a timeout of 0: reset the connection and free its send buffer, which the client does not read."""


class Outgoing:
    """A response that is sent without blocking; used by one thread at a time."""

    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self._sock = sock
        self._data = memoryview(data)
        self.events = selectors.EVENT_WRITE
        """The selector event on which `send` can make progress."""

    @property
    def size(self) -> int:
        """The number of bytes still to be sent."""
        return len(self._data)

    def send(self) -> bool:
        """Send what the socket accepts now; return whether everything is sent.

        Raises `OSError` if the client closed the connection.
        """
        self._sock.settimeout(0)
        left = _MAX_WRITE
        while self._data and left > 0:
            try:
                # After SSLWantWriteError, OpenSSL requires the same bytes again: the same start and the same length.
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
    """One response that is being sent."""

    sock: socket.socket
    outgoing: Outgoing
    until: float
    size: int
    """The bytes that count towards the limit while the response is pending."""
    verified: bool
    """Whether the client has authenticated."""
    sent: Callable[[], None]
    """A callback after the whole response is sent; not called if it is dropped."""


class PendingAnswers:
    """All pending responses; used by the selector's thread, except for `count`, which is thread-safe."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        grace: float = GRACE_PERIOD,
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
        """Take ownership of a socket and the response to be sent to it."""
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
        """Send more of the response on a writable socket."""
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
        """Drop the responses whose deadlines have passed."""
        now = self._clock()
        for answer in [one for one in self._answers if one.until < now]:
            self._give_up(answer)

    def give_one_up(self) -> bool:
        """Drop the oldest response, of an unverified client if possible; return False if there is none."""
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
