"""Where clients wait until they have said what they want, and until they have taken their answers: one thread for all.

A connection costs a thread only once its TLS handshake is done, the whole head of a request is there, and this cannot
be answered at once; until then it is one of a bounded number, with a deadline, and when there is no more room the one
that has been here longest goes.  So clients that say nothing, or say it a byte at a time, cost some memory and nobody
else's turn.  The same holds of those that do not read (`cdi.source.inbound.pending`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cdi.api.errors import CdiError, InternalError, UploadMalformed
from cdi.source.inbound.farewell import Farewells, Leaver
from cdi.source.inbound.head import MAX_HEAD, Head, parse, split
from cdi.source.inbound.pending import PendingAnswer, PendingAnswers
from cdi.source.inbound.plain import PlainContext
from cdi.source.inbound.turn import Turn
from cdi.source.inbound.visit import Visit

MOST_WAITING = 1000
HEAD_SECONDS = 15.0
"""For a handshake and a head together."""
IDLE_SECONDS = 60.0
"""Between two requests of one connection."""
MAX_UNVERIFIED_REQUESTS = 100
"""On one connection, by a client that has not shown who it is."""
_SEND_BUFFER = 128 << 10
"""Bytes that the kernel keeps for a client that does not read; it would let them grow to megabytes by itself."""
_LOOK_SECONDS = 1.0
_LAST_SECONDS = 5.0
"""At the end, for those who were interrupted to be answered and to hear it."""
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_STACK = 2 << 20
"""Bytes of a request's thread.  What C code calls itself for (JSON) is bounded to fit by far."""
_UNREADABLE = Head(method="", path="", query="", headers={}, length=1, keep_alive=False, expects=False)


@dataclass(eq=False, slots=True, kw_only=True)
class _Guest:
    """A client that is being listened to."""

    sock: ssl.SSLSocket
    until: float
    shaken: bool = False
    data: bytearray = field(default_factory=bytearray)
    idle: bool = False
    """It was answered before, and nothing has come since."""
    unverified: int = 0
    """Requests without anything that shows who it is, since it last showed that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A request that is over, but for what its client has still to take."""

    guest: _Guest
    visit: Visit
    stays: bool
    """The connection may carry another request."""


class Reception:
    """Listens from its making to its end."""

    def __init__(
        self,
        listener: socket.socket,
        context: Callable[[], ssl.SSLContext | PlainContext],
        begin: Callable[[Visit], Turn | bool],
        *,
        most: int,
        most_unverified: int | None = None,
        stall_timeout: float = 60.0,
        head_seconds: float = HEAD_SECONDS,
        most_waiting: int = MOST_WAITING,
        ended: Callable[[Visit], None] = lambda _: None,
    ) -> None:
        """`begin` answers a request at once, or says what is to be done in a turn.

        It runs in the thread that serves all clients: it must not wait for anything, nor read a body.  Where it
        answers it returns whether the connection may carry another request.

        There are `most` turns at a time, of which requests that are not verified get `most_unverified`; `context` is
        asked for every connection, so certificates may change; `ended` is told of every request.
        """
        self._listener = listener
        self._context = context
        self._begin = begin
        self._most = most
        self._most_unverified = most if most_unverified is None else most_unverified
        self._tell = ended
        self._stall = stall_timeout
        self._head_seconds = head_seconds
        self._most_waiting = most_waiting
        self._selector = selectors.DefaultSelector()
        self._guests: dict[_Guest, None] = {}
        self._ready: deque[_Guest] = deque()
        """Those of whom something is here that the selector does not show."""
        self._returned: list[_Served] = []
        self._pending = PendingAnswers(self._selector)
        self._farewells = Farewells(self._selector)
        self._lock = threading.Lock()
        self._busy: set[Visit] = set()
        self._left = threading.Condition(self._lock)
        self._ending = False
        self._alone = False
        """Nobody comes any more, and who had said nothing yet is gone."""
        self._ended = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="reception", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def busy(self) -> int:
        """Turns that are taken."""
        with self._lock:
            return len(self._busy)

    def close(self, seconds: float = 0.0) -> None:
        """Hear nobody new; those that are being served have `seconds` to come to an end, then they are interrupted."""
        with self._left:
            self._ending = True
            self._wake()
            self._left.wait_for(lambda: self._alone)
            self._left.wait_for(self._empty, seconds)
            for visit in self._busy:
                visit.interrupt()
            self._left.wait_for(self._empty, _LAST_SECONDS)
            self._ended = True
            self._wake()
        self._thread.join()
        for served in self._returned:
            served.guest.sock.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _empty(self) -> bool:
        return not (self._busy or self._returned or self._pending.count or self._farewells.count)

    def _wake(self) -> None:
        """With the lock, and not after the end: the pipe's number may be another's then."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    # --- the one thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        looked = time.monotonic()
        try:
            while not self._ended:
                for key, _ in self._selector.select(0 if self._ready else _LOOK_SECONDS):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake_read, 4096)
                        self._welcome_back()
                    elif isinstance(key.data, Leaver):
                        self._farewells.hear(key.data)
                    elif isinstance(key.data, PendingAnswer):
                        self._pending.send(key.data)
                    elif key.data in self._guests:
                        self._listen(key.data)
                # One request of each: who sends many at once waits for the others.
                for _ in range(len(self._ready)):
                    guest = self._ready.popleft()
                    if guest in self._guests:
                        self._listen(guest)
                if self._ending:
                    self._welcome_back()
                    self._turn_away()
                now = time.monotonic()
                if now - looked >= _LOOK_SECONDS:
                    looked = now
                    self._pending.expire()
                    self._farewells.look()
                    for guest in [one for one in self._guests if one.until < now]:
                        self._dismiss(guest)
        finally:
            self._turn_away()
            self._pending.end()
            self._farewells.end()

    def _turn_away(self) -> None:
        """Those who have not said what they want; and nobody comes any more."""
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
        for guest in list(self._guests):
            self._dismiss(guest)
        with self._left:
            self._alone = True
            self._left.notify_all()

    def _accept(self) -> None:
        for number in range(64):
            try:
                plain, _ = self._listener.accept()
            except OSError as error:  # nobody any more, or gone already
                # Without a descriptor left it fails where nobody waits as well: only the first time somebody does.
                if error.errno in _NO_ROOM and not number:
                    self._make_room()
                return
            plain.setblocking(False)
            try:
                if plain.family != socket.AF_UNIX:
                    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock = self._context().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            except OSError:
                plain.close()
                continue
            self._seat(_Guest(sock=sock, until=time.monotonic() + self._head_seconds))

    def _make_room(self) -> None:
        """Close a connection that nobody would miss: the process has no descriptor left for another one."""
        if self._guests:
            self._dismiss(next(iter(self._guests)))
        elif not self._pending.give_one_up():
            self._farewells.cut_one_off()

    def _seat(self, guest: _Guest) -> None:
        if len(self._guests) >= self._most_waiting:
            self._dismiss(next(iter(self._guests)))
        self._guests[guest] = None
        self._selector.register(guest.sock, selectors.EVENT_READ, guest)

    def _rise(self, guest: _Guest) -> None:
        self._guests.pop(guest, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(guest.sock)

    def _dismiss(self, guest: _Guest) -> None:
        self._rise(guest)
        with contextlib.suppress(OSError):
            guest.sock.close()

    def _listen(self, guest: _Guest) -> None:
        try:
            if not guest.shaken:
                guest.sock.do_handshake()
                guest.shaken = True
                self._selector.modify(guest.sock, selectors.EVENT_READ, guest)
            while (parts := split(guest.data)) is None and len(guest.data) < MAX_HEAD:
                piece = guest.sock.recv(MAX_HEAD - len(guest.data))
                if not piece:
                    self._dismiss(guest)
                    return
                if guest.idle:
                    guest.idle, guest.until = False, time.monotonic() + self._head_seconds
                guest.data += piece
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._selector.modify(guest.sock, selectors.EVENT_WRITE, guest)
            return
        except OSError:  # the client's affair, and ssl.SSLError is one of them
            self._dismiss(guest)
            return
        self._rise(guest)
        self._receive(guest, parts)

    def _receive(self, guest: _Guest, parts: tuple[bytes, bytes] | None) -> None:
        """Begin with a request: `parts` are its head and what came behind it, None where it is longer than any."""
        head, rest, refusal = _UNREADABLE, b"", None
        if parts is None:
            refusal = UploadMalformed(f"the request's head has more than {MAX_HEAD} bytes", status=431)
        else:
            try:
                head, rest = parse(parts[0]), parts[1]
            except UploadMalformed as error:
                refusal = error
        visit = Visit(guest.sock, head, rest, stall_timeout=self._stall, where="the client")
        guest.unverified += 1
        visit.last = guest.unverified >= MAX_UNVERIFIED_REQUESTS
        begun = self._refuse(visit, refusal) if refusal is not None else self._begun(visit)
        if isinstance(begun, Turn):
            visit.verified = begun.verified
            if visit.verified:
                guest.unverified, visit.last = 0, False
            if self._take_turn(visit):
                self._start(visit, guest, begun)
                return
            busy = UploadMalformed("too many requests at a time", remedy="send it again later", status=503)
            begun = self._refuse(visit, busy)
        self._tell(visit)
        self._settle(_Served(guest=guest, visit=visit, stays=begun))

    def _begun(self, visit: Visit) -> Turn | bool:
        try:
            return self._begin(visit)
        except OSError:
            return False
        except Exception as error:  # noqa: BLE001  a defect that one request meets must not end all others
            defect = InternalError(f"{type(error).__name__}: {error}")
            return not visit.answered and self._refuse(visit, defect)

    @staticmethod
    def _refuse(visit: Visit, error: CdiError) -> bool:
        return visit.refuse(error, error.status if isinstance(error, UploadMalformed) else 500)

    def _take_turn(self, visit: Visit) -> bool:
        """Whether there is one."""
        with self._lock:
            if len(self._busy) >= self._most:
                return False
            if not visit.verified and sum(not one.verified for one in self._busy) >= self._most_unverified:
                return False
            self._busy.add(visit)
        return True

    def _start(self, visit: Visit, guest: _Guest, turn: Turn) -> None:
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=self._attend, args=(visit, guest, turn), name="visit", daemon=True).start()
        except RuntimeError:  # no thread is to be had
            self._part(_Served(guest=guest, visit=visit, stays=False))
        finally:
            threading.stack_size(before)

    def _settle(self, served: _Served) -> None:
        """See to it that the answer goes out, and then to the connection."""
        outgoing = served.visit.outgoing
        if outgoing is None:
            self._answered(served)
            return
        self._pending.add(
            served.guest.sock,
            outgoing,
            verified=served.visit.verified,
            sent=lambda: self._answered(served),
        )

    def _answered(self, served: _Served) -> None:
        """Listen for another request, or hang up."""
        guest, visit = served.guest, served.visit
        if not served.stays or self._ending:
            if visit.hang_up():
                self._farewells.take(guest.sock)
            return
        guest.data = bytearray(visit.rest())
        guest.idle, guest.until = not guest.data, time.monotonic() + IDLE_SECONDS
        try:
            guest.sock.setblocking(False)
            self._seat(guest)
        except (OSError, ValueError):
            self._dismiss(guest)
            return
        if guest.data or guest.sock.pending():
            self._ready.append(guest)

    def _welcome_back(self) -> None:
        with self._lock:
            returned, self._returned = self._returned, []
        for served in returned:
            self._settle(served)

    # --- a request's thread -------------------------------------------------------------------------------------

    def _attend(self, visit: Visit, guest: _Guest, turn: Turn) -> None:
        again = False
        try:
            again = turn.run(visit)
        except OSError:
            again = False
        finally:
            try:
                self._tell(visit)
            finally:
                self._part(_Served(guest=guest, visit=visit, stays=again))

    def _part(self, served: _Served) -> None:
        """Give the turn back, and the connection to the one thread."""
        served.visit.end()
        with self._left:
            self._busy.discard(served.visit)
            if self._ended:
                served.guest.sock.close()
            else:
                self._returned.append(served)
                self._wake()
            self._left.notify_all()
