"""TCP and TLS connections that one thread uses and any thread can interrupt, and a pool of idle ones.

Bodies are received from the kernel (or OpenSSL) directly into the caller's buffer; only heads and chunk sizes pass
through a small buffer here.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Hashable, Iterator

from cdi.api.errors import Interrupted, SourceStalled, SourceUnreachable
from cdi.http.dialer import SocketCanceller

LOG = logging.getLogger(__name__)
MAX_IDLE = 64
"""The maximum number of idle connections in a pool."""
KEEPALIVE_EXPIRY = 50.0
"""Seconds an idle connection is kept. Most servers close idle connections after 60 s or more (nginx: 75 s); an
earlier close (Apache: 5 s) is detected before reuse.
"""
_BUFFER = 16 << 10
_TLS_BATCH = 256 << 10
_TLS_BATCH_TIMEOUT = 0.1


class RemoteDisconnected(Exception):
    """The peer closed or reset the connection before it sent a byte of the response."""


class EarlyResponse(Exception):
    """The descriptor given to `Connection.interrupt_when_readable` became readable."""


class ConnectionState(enum.Enum):
    """What a connection is doing."""

    ACTIVE = "active"
    """A request is in progress, or its response is being read."""
    IDLE = "idle"
    CLOSED = "closed"


class Connection:
    """A connected byte stream, plain or TLS, used by one thread at a time.

    `read` and `readline` raise `SourceStalled`, `SourceUnreachable` and `Interrupted`.
    """

    def __init__(self, sock: socket.socket, key: Hashable, *, stall_timeout: float, where: str) -> None:
        self.key = key
        self.where = where
        """The location of the current request, for messages."""
        self.unclean_eof = False
        """Whether TLS ended without a close_notify alert; an attacker on the network can cause such an end of file."""
        self.received = 0
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._stall = stall_timeout
        self._cancel: SocketCanceller | None = None
        self._buffer = bytearray(_BUFFER)
        self._start = 0
        self._end = 0
        self._deadline: float | None = None
        self._other: int | None = None
        self._ender: int | None = None
        self.idle_since = 0.0
        sock.settimeout(stall_timeout)

    @property
    def state(self) -> ConnectionState:
        if self._sock.fileno() < 0:
            return ConnectionState.CLOSED
        return ConnectionState.IDLE if self._cancel is None else ConnectionState.ACTIVE

    def __repr__(self) -> str:
        tls = " over TLS" if self.is_encrypted else ""
        return f"<Connection for {self.where}{tls}: {self.state.value}, {self.received} bytes received>"

    @property
    def is_open(self) -> bool:
        """False once it was closed, or the peer closed it while it was idle."""
        try:
            return self.state is ConnectionState.ACTIVE or self.is_reusable()
        except (OSError, ValueError):
            return False

    @property
    def is_encrypted(self) -> bool:
        return self._tls is not None

    def acquire(self, cancel: SocketCanceller, *, where: str) -> None:
        """Attach the connection to `cancel` for a new request."""
        self.where = where
        self._cancel = cancel
        self.received = 0
        cancel.attach(self._sock)

    def hand_over(self, cancel: SocketCanceller) -> None:
        """Attach the connection to another thread's `cancel` within the same response."""
        self._cancel = cancel
        cancel.attach(self._sock)

    def release(self) -> None:
        if self._cancel is not None:
            self._cancel.detach()
            self._cancel = None

    def close(self) -> None:
        self.release()
        with contextlib.suppress(OSError):
            self._sock.close()

    def shutdown(self) -> None:
        """Shut the socket down, so that its user gets an error. Thread-safe."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def is_reusable(self) -> bool:
        """Return whether there is nothing to read, not even an end of file, so that the connection can be reused.

        A server that closed the connection, or sent data without a request, makes it unusable.
        """
        if self._start != self._end or (self._tls is not None and self._tls.pending()):
            return False
        poller = select.poll()
        poller.register(self._sock, select.POLLIN | select.POLLRDHUP)
        return not poller.poll(0)

    @contextlib.contextmanager
    def deadline(self, seconds: float = 0.0) -> Iterator[None]:
        """Limit all reads within the context to `seconds` in total, or to one stall timeout if that is longer.

        Otherwise a peer could send a head one byte at a time.
        """
        self._deadline = time.monotonic() + max(seconds, self._stall)
        try:
            yield
        finally:
            self._deadline = None
            self._sock.settimeout(self._stall)

    def push_back(self, data: bytes) -> None:
        """Put `data` back, to be read first; at most 16 KiB, and only before anything else is read."""
        self._buffer[: len(data)] = data
        self._start, self._end = 0, len(data)

    def take_buffered(self) -> bytes:
        """Return and remove the bytes that are received but not yet read."""
        data = bytes(self._buffer[self._start : self._end])
        self._start = self._end = 0
        return data

    def interrupt_when_readable(self, other: int | None) -> None:
        """Make reads raise `EarlyResponse` once the descriptor `other` is readable; None turns this off."""
        self._other = other

    def end_at(self, descriptor: int) -> None:
        """Make reads report the end of the stream as soon as `descriptor` is readable.

        Shutting the socket down for reading would have the same effect, but the kernel would then stop opening the
        receive window, and the peer would block with data still to send.
        """
        self._ender = descriptor

    def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`; raise `RemoteDisconnected` if the peer closed the connection."""
        try:
            self._sock.sendall(data)
        except TimeoutError as error:
            raise self._stalled() from error
        except OSError as error:
            self._raise_if_cancelled()
            raise RemoteDisconnected(error.strerror or type(error).__name__) from error

    def send_until_readable(self, data: memoryview) -> int:
        """Send `data`, and stop if sending blocks while the peer has sent something; return the number of bytes sent.

        Fewer than all of them have been sent only if a read returns at once. With TLS, the next call must continue
        with the same data.

        Raises:
            SourceStalled: No byte could be sent for one stall timeout.
            RemoteDisconnected: The peer closed the connection.
        """
        timeout, sent = self._sock.gettimeout(), 0
        self._sock.settimeout(0)
        try:
            while sent < len(data):
                try:
                    # With TLS, a send that blocks counts nothing and continues with the same bytes.
                    sent += self._sock.send(data[sent:])
                except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    poller = select.poll()
                    poller.register(self._sock, select.POLLIN | select.POLLOUT)
                    if not poller.poll(self._stall * 1000):
                        raise self._stalled() from None
                    if self._has_input():
                        break
        except OSError as error:
            self._raise_if_cancelled()
            raise RemoteDisconnected(error.strerror or type(error).__name__) from error
        finally:
            self._sock.settimeout(timeout)
        return sent

    def _has_input(self) -> bool:
        """Receive without blocking; return whether a read returns at once, be it with an end of file or an error."""
        if self._start != self._end:
            return True
        try:
            count = self._sock.recv_into(self._buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False  # with TLS, only a part of a record or no application data
        except OSError:
            return True
        self._start, self._end = 0, count
        self.received += count
        return True

    def readline(self, limit: int = -1, /) -> bytes:
        """Return a line with its line end, at most `limit` bytes; it is shorter only at the end of the stream."""
        if limit < 0:
            limit = _BUFFER
        line = b""
        while len(line) < limit:
            if self._start == self._end:
                self._start, self._end = 0, self._receive(memoryview(self._buffer))
                if not self._end:
                    break
            stop = min(self._end, self._start + limit - len(line))
            newline = self._buffer.find(b"\n", self._start, stop)
            stop = stop if newline < 0 else newline + 1
            line += self._buffer[self._start : stop]
            self._start = stop
            if newline >= 0:
                break
        return line

    def read(self, view: memoryview, *, due: bool = False) -> int:
        """Read some bytes into `view`, which must not be empty; return 0 at the end of the stream.

        `due` says that the peer has announced that many bytes, so waiting briefly for more of them is harmless.
        """
        buffered = self._end - self._start
        if buffered:
            count = min(buffered, len(view))
            view[:count] = self._buffer[self._start : self._start + count]
            self._start += count
            return count
        return self._receive(view, due=due)

    def _receive(self, view: memoryview, *, due: bool = False) -> int:
        if self._deadline is not None:
            self._sock.settimeout(max(0.001, min(self._stall, self._deadline - time.monotonic())))
        try:
            if self._other is None and self._ender is None:
                count = self._sock.recv_into(view)
                if due and self._tls is not None:
                    count = self._coalesce_tls_records(self._tls.recv_into, view, count)
            else:
                count = self._receive_watching(view, due=due)
        except TimeoutError as error:
            raise self._stalled() from error
        except ssl.SSLEOFError:
            count = 0
            self.unclean_eof = True
        except OSError as error:
            self._raise_if_cancelled()
            if not self.received and isinstance(error, ConnectionError):
                raise RemoteDisconnected(error.strerror or "reset") from error
            reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            raise SourceUnreachable(f"connection lost: {reason or type(error).__name__}", where=self.where) from error
        if not count:
            self._raise_if_cancelled()
        self.received += count
        return count

    def _receive_watching(self, view: memoryview, *, due: bool) -> int:
        """Receive while also polling the other descriptors, even while a TLS record is incomplete."""
        timeout = self._sock.gettimeout() or 0.0
        self._sock.settimeout(0)
        try:
            count = self._receive_until(view, time.monotonic() + timeout)
            if due and self._tls is not None:
                enough = time.monotonic() + _TLS_BATCH_TIMEOUT
                count = self._coalesce_tls_records(lambda rest: self._receive_until(rest, enough), view, count)
        finally:
            self._sock.settimeout(timeout)
        return count

    def _receive_until(self, view: memoryview, until: float) -> int:
        """Receive from the non-blocking socket; raise `TimeoutError` after `until` (monotonic) and `EarlyResponse`."""
        poller = select.poll()
        for descriptor in (self._sock.fileno(), self._other, self._ender):
            if descriptor is not None:
                poller.register(descriptor, select.POLLIN)
        here = self._tls is not None and self._tls.pending() > 0
        while True:
            left = 0.0 if here else max(0.0, until - time.monotonic())
            found = {descriptor for descriptor, _ in poller.poll(left * 1000)}
            if self._ender in found:
                return 0
            if self._other in found:
                raise EarlyResponse
            if not found and not here:
                raise TimeoutError
            try:
                return self._sock.recv_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                here = False

    @staticmethod
    def _coalesce_tls_records(receive: Callable[[memoryview], int], view: memoryview, count: int) -> int:
        """Receive more TLS records into `view`, and return the total number of bytes.

        A single read returns at most one record of 16 KiB; larger pieces reduce the caller's overhead per piece.
        """
        wanted = min(len(view), _TLS_BATCH)
        enough = time.monotonic() + _TLS_BATCH_TIMEOUT
        while 0 < count < wanted and time.monotonic() < enough:
            try:
                more = receive(view[count:])
            except (OSError, EarlyResponse):
                break  # return what was received; the next call raises the error again
            if not more:
                break
            count += more
        return count

    def _raise_if_cancelled(self) -> None:
        if self._cancel is not None:
            self._cancel.check()

    def _stalled(self) -> Exception:
        if self._cancel is not None and self._cancel.requested:
            return Interrupted("reading was interrupted")
        return SourceStalled(f"no data received for {self._stall:g} s", where=self.where)


class ConnectionPool:
    """A pool of idle connections by destination; thread-safe."""

    def __init__(self, limit: int = MAX_IDLE) -> None:
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._limit = limit
        self._closed = False

    def acquire(self, key: Hashable) -> Connection | None:
        """Return the most recently used idle connection for `key`, which is the least likely to be closed, or None."""
        now = time.monotonic()
        while True:
            with self._lock:
                found = next((c for c in reversed(self._idle) if c.key == key), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if now - found.idle_since < KEEPALIVE_EXPIRY and found.is_reusable():
                LOG.debug("reusing %r", found)
                self.add(found)
                return found
            found.close()

    def add(self, connection: Connection) -> None:
        """Register a connection that is in use."""
        with self._lock:
            self._busy.add(connection)
            closed = self._closed
        if closed:
            connection.shutdown()

    def release(self, connection: Connection) -> None:
        """Return a connection for reuse; its last response must have been read to the end."""
        connection.release()
        connection.idle_since = time.monotonic()
        with self._lock:
            self._busy.discard(connection)
            extra = connection if self._closed else None
            if extra is None:
                self._idle.append(connection)
                if len(self._idle) > self._limit:
                    extra = self._idle.pop(0)
        if extra is not None:
            extra.close()

    def discard(self, connection: Connection) -> None:
        """Close a connection that cannot be reused."""
        with self._lock:
            self._busy.discard(connection)
            # Close under the lock: `ConnectionPool.close` must not shut down a descriptor that the kernel has already
            # reused.
            connection.close()

    def close(self) -> None:
        """Close the idle connections and shut down those in use."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.shutdown()
        for connection in idle:
            connection.close()
