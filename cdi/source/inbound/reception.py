"""An HTTP listener that receives request heads and sends pending responses on a single thread.

A connection gets a thread only when its TLS handshake is done, the head of a request is complete, and the request
cannot be answered at once. Until then it is one of a limited number of pending connections with a deadline; beyond the
limit the oldest is closed. Clients that send nothing, or send very slowly, therefore cost some memory but no thread.
The same applies to clients that do not read (`cdi.source.inbound.pending`).
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
"""Seconds for a handshake and a head together."""
IDLE_SECONDS = 60.0
"""Seconds between two requests of one connection."""
MAX_UNVERIFIED_REQUESTS = 100
"""The maximum number of consecutive requests on one connection without authentication."""
_SEND_BUFFER = 128 << 10
"""The kernel's send buffer for a client that does not read, in bytes; by default it can grow to megabytes."""
_LOOK_SECONDS = 1.0
_LAST_SECONDS = 5.0
"""Seconds at shutdown for sending responses to interrupted requests."""
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_STACK = 2 << 20
"""The stack size of a request's thread in bytes. The recursion of C code (JSON) is limited to far less."""
_UNREADABLE = Head(method="", path="", query="", headers={}, length=1, keep_alive=False, expects=False)


@dataclass(eq=False, slots=True, kw_only=True)
class _Guest:
    """A connection whose request head is being received."""

    sock: ssl.SSLSocket
    until: float
    shaken: bool = False
    data: bytearray = field(default_factory=bytearray)
    idle: bool = False
    """Whether a response was sent and nothing has been received since."""
    unverified: int = 0
    """The number of requests since the last one with authentication."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A finished request whose response may not be fully sent."""

    guest: _Guest
    visit: Visit
    stays: bool
    """Whether the connection may carry another request."""


class Reception:
    """A listener that accepts connections from its creation until `close`."""

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
        """Start listening.

        Args:
            listener: The listening socket, which is closed at the end.
            context: Called for each connection, so that certificates can change.
            begin: Answers a request and returns whether the connection may carry another one, or returns a `Turn` to
                run in a thread. It is called on the selector thread, so it must neither block nor read a body.
            most: The maximum number of concurrent turns.
            most_unverified: The maximum number of concurrent turns of unverified requests; the default is `most`.
            stall_timeout: Seconds a read of a body may take without receiving data.
            head_seconds: Seconds for a handshake and a head together.
            most_waiting: The maximum number of pending connections.
            ended: Called after each request.
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
        """Connections with received data that the selector does not report."""
        self._returned: list[_Served] = []
        self._pending = PendingAnswers(self._selector)
        self._farewells = Farewells(self._selector)
        self._lock = threading.Lock()
        self._busy: set[Visit] = set()
        self._left = threading.Condition(self._lock)
        self._ending = False
        self._alone = False
        """Whether the listener is closed, and so are all connections without a complete request."""
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
        """The number of running turns."""
        with self._lock:
            return len(self._busy)

    def close(self, seconds: float = 0.0) -> None:
        """Stop accepting, wait up to `seconds` for running requests, then interrupt them."""
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
        """Wake the selector thread.

        The lock must be held, and the pipe must be open: otherwise the kernel may have reused the descriptor.
        """
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    # --- Selector thread ---

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
                # Process one request of each connection, so that a client that sends many at once does not delay the
                # others.
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
        """Close the listener and all connections without a complete request."""
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
            except OSError as error:  # nothing left to accept, or the client has already closed the connection
                # Out of descriptors, accept() fails even without a waiting client. Only a failure of the first call
                # after the selector reported the listener shows that a client is waiting.
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
        """Close the least important connection, because the process has no descriptor left for a new one."""
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
        except OSError:  # an error of the client's connection, which includes ssl.SSLError
            self._dismiss(guest)
            return
        self._rise(guest)
        self._receive(guest, parts)

    def _receive(self, guest: _Guest, parts: tuple[bytes, bytes] | None) -> None:
        """Process a request whose head and following bytes are `parts`; None if the head is too long."""
        head, rest, refusal = _UNREADABLE, b"", None
        if parts is None:
            refusal = UploadMalformed(f"the request head exceeds {MAX_HEAD} bytes", status=431)
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
            busy = UploadMalformed("too many concurrent requests", remedy="send it again later", status=503)
            begun = self._refuse(visit, busy)
        self._tell(visit)
        self._settle(_Served(guest=guest, visit=visit, stays=begun))

    def _begun(self, visit: Visit) -> Turn | bool:
        try:
            return self._begin(visit)
        except OSError:
            return False
        except Exception as error:  # noqa: BLE001  a defect in one request must not stop the listener
            defect = InternalError(f"{type(error).__name__}: {error}")
            return not visit.answered and self._refuse(visit, defect)

    @staticmethod
    def _refuse(visit: Visit, error: CdiError) -> bool:
        return visit.refuse(error, error.status if isinstance(error, UploadMalformed) else 500)

    def _take_turn(self, visit: Visit) -> bool:
        """Reserve a turn for the request; return False if too many are running."""
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
        except RuntimeError:  # no thread available
            self._part(_Served(guest=guest, visit=visit, stays=False))
        finally:
            threading.stack_size(before)

    def _settle(self, served: _Served) -> None:
        """Make sure the rest of the response is sent, then continue with the connection."""
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
        """Wait for the next request on the connection, or close it."""
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

    # --- Request threads ---

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
        """End the turn and return the connection to the selector thread."""
        served.visit.end()
        with self._left:
            self._busy.discard(served.visit)
            if self._ended:
                served.guest.sock.close()
            else:
                self._returned.append(served)
                self._wake()
            self._left.notify_all()
