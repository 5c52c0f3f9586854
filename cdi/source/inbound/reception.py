"""Where clients wait until they have said what they want: one thread for all of them.

A connection costs a thread only once its TLS handshake is done and the whole head of a request is there; until then it
is one of a bounded number, with a deadline, and when there is no more room the one that has been here longest goes.
So clients that say nothing, or say it a byte at a time, cost some memory and nobody else's turn.
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
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from cdi.api.errors import UploadMalformed
from cdi.source.inbound.farewell import Farewells, Leaver
from cdi.source.inbound.head import MAX_HEAD, Head, parse
from cdi.source.inbound.plain import PlainContext
from cdi.source.inbound.visit import Visit

MOST_WAITING = 1000
HEAD_SECONDS = 15.0
"""For a handshake and a head together."""
IDLE_SECONDS = 60.0
"""Between two requests of one connection."""
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
    leaving: bool = False
    """It was hung up on."""


class Reception:
    """Listens from its making to its end.  `serve` has each request in a thread of its own."""

    def __init__(
        self,
        listener: socket.socket,
        context: Callable[[], ssl.SSLContext | PlainContext],
        serve: Callable[[Visit], bool],
        *,
        most: int,
        stall_timeout: float = 60.0,
        head_seconds: float = HEAD_SECONDS,
        most_waiting: int = MOST_WAITING,
        always: Container[str] = (),
        ended: Callable[[Visit], None] = lambda _: None,
    ) -> None:
        """`serve` answers, and says whether the connection may carry another request.

        `most` requests are served at a time, but for those at the paths of `always`, which are to be answered at once;
        `context` is asked for every connection, so certificates may change; `ended` is told of every request.
        """
        self._listener = listener
        self._context = context
        self._serve = serve
        self._most = most
        self._always = always
        self._tell = ended
        self._stall = stall_timeout
        self._head_seconds = head_seconds
        self._most_waiting = most_waiting
        self._selector = selectors.DefaultSelector()
        self._guests: dict[_Guest, None] = {}
        self._returned: list[_Guest] = []
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
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="reception", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def busy(self) -> int:
        """Requests that are being served."""
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
        for guest in self._returned:
            guest.sock.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _empty(self) -> bool:
        return not self._busy and not self._returned and not self._farewells.count

    def _wake(self) -> None:
        """With the lock, and not after the end: the pipe's number may be another's then."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    # --- the one thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        looked = time.monotonic()
        try:
            while not self._ended:
                for key, _ in self._selector.select(_LOOK_SECONDS):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake_read, 4096)
                        self._welcome_back()
                    elif isinstance(key.data, Leaver):
                        self._farewells.hear(key.data)
                    elif key.data in self._guests:
                        self._listen(key.data)
                if self._ending:
                    self._welcome_back()
                    self._turn_away()
                now = time.monotonic()
                if now - looked >= _LOOK_SECONDS:
                    looked = now
                    self._farewells.look()
                    for guest in [one for one in self._guests if one.until < now]:
                        self._dismiss(guest)
        finally:
            self._turn_away()
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
        for _ in range(64):
            try:
                plain, _ = self._listener.accept()
            except OSError as error:  # nobody any more, or gone already
                if error.errno in _NO_ROOM and self._guests:
                    self._dismiss(next(iter(self._guests)))
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
            while b"\r\n\r\n" not in guest.data and len(guest.data) < MAX_HEAD:
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
        self._hand_over(guest)

    def _hand_over(self, guest: _Guest) -> None:
        """To a thread of its own: all that is wanted is known."""
        self._rise(guest)
        cut = guest.data.find(b"\r\n\r\n") + 4
        head, rest, refusal = _UNREADABLE, b"", None
        if cut < 4:
            refusal = UploadMalformed(f"the request's head has more than {MAX_HEAD} bytes", status=431)
        else:
            try:
                head, rest = parse(bytes(guest.data[:cut])), bytes(guest.data[cut:])
            except UploadMalformed as error:
                refusal = error
        guest.sock.setblocking(True)
        visit = Visit(guest.sock, head, rest, stall_timeout=self._stall, where="the client")
        with self._lock:
            if len(self._busy) >= self._most and refusal is None and head.path not in self._always:
                refusal = UploadMalformed("too many requests at a time", remedy="send it again later", status=503)
            self._busy.add(visit)
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=self._attend, args=(visit, guest, refusal), name="visit", daemon=True).start()
        except RuntimeError:  # no thread is to be had
            self._part(visit, guest, stays=False)
        finally:
            threading.stack_size(before)

    # --- a request's thread -------------------------------------------------------------------------------------

    def _attend(self, visit: Visit, guest: _Guest, refusal: UploadMalformed | None) -> None:
        again = False
        try:
            if refusal is not None:
                visit.refuse(refusal, refusal.status)
            else:
                again = self._serve(visit)
        except OSError:
            again = False
        finally:
            try:
                self._tell(visit)
            finally:
                self._part(visit, guest, stays=again)

    def _part(self, visit: Visit, guest: _Guest, *, stays: bool) -> None:
        """Give it back to the one thread, for another request or a farewell."""
        with self._left:
            self._busy.discard(visit)
            stays = stays and not self._ending
            if stays:
                guest.data = bytearray(visit.rest())
                guest.idle, guest.until = not guest.data, time.monotonic() + IDLE_SECONDS
            else:
                guest.leaving = visit.hang_up()
            if self._ended:
                guest.sock.close()
            elif stays or guest.leaving:
                self._returned.append(guest)
                self._wake()
            self._left.notify_all()

    def _welcome_back(self) -> None:
        with self._lock:
            returned, self._returned = self._returned, []
            for guest in returned:
                if guest.leaving:
                    self._farewells.take(guest.sock)
        for guest in returned:
            if guest.leaving:
                continue
            try:
                guest.sock.setblocking(False)
                self._seat(guest)
            except (OSError, ValueError):
                self._dismiss(guest)
                continue
            # What came already is not shown by the selector.
            if guest.data or guest.sock.pending():
                self._listen(guest)
