"""An HTTP listener that receives request heads and sends pending responses on a single thread.

A connection gets a thread only when its TLS handshake is done, the head of a request is complete, and the request
cannot be answered at once. Until then it is one of a limited number of pending connections with a deadline; beyond the
limit the oldest is closed. Clients that send nothing, or send very slowly, therefore cost some memory but no thread.
The same applies to clients that do not read (`cdi.http.server.pending`).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cdi.api.errors import CdiError, InternalError, UploadMalformed
from cdi.http.server.lingering_close import LingeringCloser, LingeringSocket
from cdi.http.server.pending import PendingAnswer, PendingAnswers
from cdi.http.server.pending_connection import PendingConnection
from cdi.http.server.plaintext import PlaintextContext
from cdi.http.server.request import ServerRequest
from cdi.http.server.request_head import MAX_HEAD, RequestHead, parse, split
from cdi.http.server.turn import Turn

LOG = logging.getLogger(__name__)
MAX_PENDING = 1000
HEAD_TIMEOUT = 15.0
"""Seconds for a handshake and a head together."""
MAX_UNVERIFIED_REQUESTS = 100
"""The maximum number of consecutive requests on one connection without authentication."""
_SEND_BUFFER = 128 << 10
"""The kernel's send buffer for a client that does not read, in bytes; by default it can grow to megabytes."""
_POLL_INTERVAL = 1.0
_DRAIN_TIMEOUT = 5.0
"""Seconds at shutdown for sending responses to interrupted requests."""
_RESOURCE_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_STACK = 2 << 20
"""The stack size of a request's thread in bytes. The recursion of C code (JSON) is limited to far less."""
_UNREADABLE = RequestHead(method="", path="", query="", headers={}, length=1, keep_alive=False, expect_continue=False)


class ListenerState(enum.Enum):
    """State of a listener; each follows the one before."""

    ACCEPTING = "accepting"
    ENDING = "ending"
    """`HttpListener.close` was called, and the selector thread has not noticed it yet."""
    DRAINING = "draining"
    """The listening socket and all connections without a complete request are closed; requests still run."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A finished request whose response may not be fully sent."""

    connection: PendingConnection
    request: ServerRequest
    stays: bool
    """Whether the connection may carry another request."""


class HttpListener:
    """A listener that accepts connections from its creation until `close`."""

    def __init__(
        self,
        listener: socket.socket,
        context: Callable[[], ssl.SSLContext | PlaintextContext],
        begin: Callable[[ServerRequest], Turn | bool],
        *,
        most: int,
        most_unverified: int | None = None,
        stall_timeout: float = 60.0,
        head_seconds: float = HEAD_TIMEOUT,
        max_pending: int = MAX_PENDING,
        ended: Callable[[ServerRequest], None] = lambda _: None,
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
            max_pending: The maximum number of pending connections.
            ended: Called after each request.
        """
        self._listener = listener
        self._context = context
        self._begin = begin
        self._most = most
        self._most_unverified = most if most_unverified is None else most_unverified
        self._on_request_done = ended
        self._stall = stall_timeout
        self._head_seconds = head_seconds
        self._max_pending = max_pending
        self._selector = selectors.DefaultSelector()
        self._pending_connections: dict[PendingConnection, None] = {}
        self._ready: deque[PendingConnection] = deque()
        """Connections with received data that the selector does not report."""
        self._to_recycle: list[_Served] = []
        self._pending = PendingAnswers(self._selector)
        self._farewells = LingeringCloser(self._selector)
        self._lock = threading.Lock()
        self._busy: set[ServerRequest] = set()
        self._state_changed = threading.Condition(self._lock)
        self._state = ListenerState.ACCEPTING
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="reception", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        pending, busy = len(self._pending_connections), len(self._busy)
        return f"<HttpListener: {self._state.value}, {pending} pending connections, {busy} requests>"

    @property
    def state(self) -> ListenerState:
        return self._state

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
        with self._state_changed:
            if self._state is ListenerState.ACCEPTING:
                self._state = ListenerState.ENDING
            self._wake()
            self._state_changed.wait_for(lambda: self._state is not ListenerState.ENDING)
            self._state_changed.wait_for(self._empty, seconds)
            interrupted = bool(self._busy)
            for request in self._busy:
                request.interrupt()
            # If nothing was interrupted, clients that have their response and keep the connection open do not count.
            self._state_changed.wait_for(self._empty if interrupted else self._all_answered, _DRAIN_TIMEOUT)
            self._state = ListenerState.CLOSED
            self._wake()
        self._thread.join()
        for served in self._to_recycle:
            served.connection.sock.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _empty(self) -> bool:
        return self._all_answered() and not self._farewells.count

    def _all_answered(self) -> bool:
        return not (self._busy or self._to_recycle or self._pending.count)

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
            while self._state is not ListenerState.CLOSED:
                for key, _ in self._selector.select(0 if self._ready else _POLL_INTERVAL):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake_read, 4096)
                        self._resume_keepalive()
                    elif isinstance(key.data, LingeringSocket):
                        self._farewells.on_readable(key.data)
                    elif isinstance(key.data, PendingAnswer):
                        self._pending.send(key.data)
                    elif key.data in self._pending_connections:
                        self._read_head(key.data)
                # Process one request of each connection, so that a client that sends many at once does not delay the
                # others.
                for _ in range(len(self._ready)):
                    connection = self._ready.popleft()
                    if connection in self._pending_connections:
                        self._read_head(connection)
                if self._state is not ListenerState.ACCEPTING:
                    self._resume_keepalive()
                    self._stop_accepting()
                now = time.monotonic()
                if now - looked >= _POLL_INTERVAL:
                    looked = now
                    self._pending.expire()
                    self._farewells.expire()
                    for connection in [one for one in self._pending_connections if one.until < now]:
                        self._close_pending(connection)
        finally:
            self._stop_accepting()
            self._pending.end()
            self._farewells.end()

    def _stop_accepting(self) -> None:
        """Close the listener and all connections without a complete request."""
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
        for connection in list(self._pending_connections):
            self._close_pending(connection)
        with self._state_changed:
            if self._state is not ListenerState.CLOSED:
                self._state = ListenerState.DRAINING
            self._state_changed.notify_all()

    def _accept(self) -> None:
        for number in range(64):
            try:
                plain, client = self._listener.accept()
            except OSError as error:  # nothing left to accept, or the client has already closed the connection
                # Out of descriptors, accept() fails even without a waiting client. Only a failure of the first call
                # after the selector reported the listener shows that a client is waiting.
                if error.errno in _RESOURCE_ERRNOS and not number:
                    self._make_room()
                return
            LOG.debug("connection from %s", client[0] if isinstance(client, tuple) else "this machine")
            plain.setblocking(False)
            try:
                if plain.family != socket.AF_UNIX:
                    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock = self._context().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            except OSError:
                plain.close()
                continue
            self._register(PendingConnection(sock=sock, until=time.monotonic() + self._head_seconds))

    def _make_room(self) -> None:
        """Close the least important connection, because the process has no descriptor left for a new one."""
        if self._pending_connections:
            self._close_pending(next(iter(self._pending_connections)))
        elif not self._pending.give_one_up():
            self._farewells.cut_one_off()

    def _register(self, connection: PendingConnection) -> None:
        if len(self._pending_connections) >= self._max_pending:
            self._close_pending(next(iter(self._pending_connections)))
        self._pending_connections[connection] = None
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    def _unregister(self, connection: PendingConnection) -> None:
        self._pending_connections.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)

    def _close_pending(self, connection: PendingConnection) -> None:
        self._unregister(connection)
        with contextlib.suppress(OSError):
            connection.sock.close()

    def _read_head(self, connection: PendingConnection) -> None:
        try:
            if not connection.receive(self._head_seconds):
                self._close_pending(connection)
                return
        except ssl.SSLWantReadError:
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)
            return
        except ssl.SSLWantWriteError:
            self._selector.modify(connection.sock, selectors.EVENT_WRITE, connection)
            return
        except OSError:  # an error of the client's connection, which includes ssl.SSLError
            self._close_pending(connection)
            return
        self._unregister(connection)
        self._receive(connection, split(connection.data))

    def _receive(self, connection: PendingConnection, parts: tuple[bytes, bytes] | None) -> None:
        """Process a request whose head and following bytes are `parts`; None if the head is too long."""
        head, rest, refusal = _UNREADABLE, b"", None
        if parts is None:
            refusal = UploadMalformed(f"the request head exceeds {MAX_HEAD} bytes", status=431)
        else:
            try:
                head, rest = parse(parts[0]), parts[1]
            except UploadMalformed as error:
                refusal = error
        request = ServerRequest(connection.sock, head, rest, stall_timeout=self._stall, where="the client")
        connection.unverified += 1
        request.last = connection.unverified >= MAX_UNVERIFIED_REQUESTS
        begun = self._refuse(request, refusal) if refusal is not None else self._begun(request)
        if isinstance(begun, Turn):
            request.verified = begun.verified
            if request.verified:
                connection.unverified, request.last = 0, False
            if self._take_turn(request):
                self._start(request, connection, begun)
                return
            busy = UploadMalformed("too many concurrent requests", remedy="send it again later", status=503)
            begun = self._refuse(request, busy)
        self._on_request_done(request)
        self._settle(_Served(connection=connection, request=request, stays=begun))

    def _begun(self, request: ServerRequest) -> Turn | bool:
        try:
            return self._begin(request)
        except OSError:
            return False
        except Exception as error:  # noqa: BLE001  a defect in one request must not stop the listener
            defect = InternalError(f"{type(error).__name__}: {error}")
            return not request.responded and self._refuse(request, defect)

    @staticmethod
    def _refuse(request: ServerRequest, error: CdiError) -> bool:
        return request.respond_error(error, error.status if isinstance(error, UploadMalformed) else 500)

    def _take_turn(self, request: ServerRequest) -> bool:
        """Reserve a turn for the request; return False if too many are running."""
        with self._lock:
            if len(self._busy) >= self._most:
                return False
            if not request.verified and sum(not one.verified for one in self._busy) >= self._most_unverified:
                return False
            self._busy.add(request)
        return True

    def _start(self, request: ServerRequest, connection: PendingConnection, turn: Turn) -> None:
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(
                target=self._handle_request, args=(request, connection, turn), name="request", daemon=True
            ).start()
        except RuntimeError:  # no thread available
            self._recycle_or_close(_Served(connection=connection, request=request, stays=False))
        finally:
            threading.stack_size(before)

    def _settle(self, served: _Served) -> None:
        """Make sure the rest of the response is sent, then continue with the connection."""
        outgoing = served.request.outgoing
        if outgoing is None:
            self._answered(served)
            return
        self._pending.add(
            served.connection.sock,
            outgoing,
            verified=served.request.verified,
            sent=lambda: self._answered(served),
        )

    def _answered(self, served: _Served) -> None:
        """Wait for the next request on the connection, or close it."""
        connection, request = served.connection, served.request
        if not served.stays or self._state is not ListenerState.ACCEPTING:
            if request.begin_close():
                self._farewells.take(connection.sock)
            return
        try:
            connection.await_next(request.take_buffered())
            self._register(connection)
        except (OSError, ValueError):
            self._close_pending(connection)
            return
        if connection.data or connection.sock.pending():
            self._ready.append(connection)

    def _resume_keepalive(self) -> None:
        with self._lock:
            returned, self._to_recycle = self._to_recycle, []
        for served in returned:
            self._settle(served)

    # --- Request threads ---

    def _handle_request(self, request: ServerRequest, connection: PendingConnection, turn: Turn) -> None:
        again = False
        try:
            again = turn.run(request)
        except OSError:
            again = False
        finally:
            try:
                self._on_request_done(request)
            finally:
                self._recycle_or_close(_Served(connection=connection, request=request, stays=again))

    def _recycle_or_close(self, served: _Served) -> None:
        """End the turn and return the connection to the selector thread."""
        served.request.end()
        with self._state_changed:
            self._busy.discard(served.request)
            if self._state is ListenerState.CLOSED:
                served.connection.sock.close()
            else:
                self._to_recycle.append(served)
                self._wake()
            self._state_changed.notify_all()
