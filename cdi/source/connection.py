"""TCP and TLS connections that one thread uses and any thread may interrupt; idle ones wait to be used again.

The bulk of a body goes from the kernel (or OpenSSL) straight into the caller's buffer; only heads and chunk sizes pass
through a small buffer here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Hashable, Iterator

from cdi.api.errors import Interrupted, SourceHostUnknown, SourceStalled, SourceUnreachable, SourceUrlInvalid

CONNECT_TIMEOUT = 30.0
"""Seconds for each address of a host, and for a TLS handshake."""
MAX_ADDRESSES = 16
MAX_IDLE = 64
"""Connections kept for use again."""
MAX_IDLE_SECONDS = 50.0
"""Servers close idle connections after 60 s or more (nginx 75, Apache 5: those are seen to be closed)."""
_NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
"""What the resolver says of a name that the name servers answer for, and that has no address."""
_BUFFER = 16 << 10
_TLS_BATCH = 256 << 10
_TLS_BATCH_SECONDS = 0.1


class Canceller:
    """Lets one thread interrupt what another does on a socket, at once and without a time-out."""

    __slots__ = ("_lock", "_requested", "_socket")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._socket: socket.socket | None = None

    @property
    def requested(self) -> bool:
        return self._requested

    def cancel(self) -> None:
        """From any thread; what is under way, and everything after it, raises `Interrupted`."""
        with self._lock:
            self._requested = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # The plain socket's own: SSLSocket.shutdown would take the TLS state from under its reader.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        if self._requested:
            raise Interrupted("reading was interrupted")

    def attach(self, sock: socket.socket) -> None:
        """`sock` is used from now on; raises `Interrupted` if that is not wanted any more."""
        with self._lock:
            self._socket = sock
        self.check()

    def detach(self) -> None:
        """Always before a socket is closed or lent to another: its number may be another's at once."""
        with self._lock:
            self._socket = None


class Dialer:
    """Opens sockets; remembers which address of a host answered, and begins with it the next time.

    Hosts behind several addresses often tag one file differently on each, which would look like a changed file.
    """

    def __init__(self) -> None:
        self._good: dict[tuple[str, int], object] = {}

    def dial(self, host: str, port: int, cancel: Canceller, *, where: str) -> socket.socket:
        """A connected socket, attached to `cancel`; raises `SourceUnreachable`, `Interrupted`."""
        cancel.check()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise resolution_error(host, error, where=where) from error
        except (UnicodeError, ValueError) as error:
            raise SourceUrlInvalid(f"{host!r} is not a host name", where=where) from error
        good = self._good.get((host, port))
        found = sorted(found[:MAX_ADDRESSES], key=lambda entry: entry[4] != good)
        problem: OSError | None = None
        for family, kind, protocol, _, address in found:
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # no IPv6 on this machine, or too many files open
                problem = error
                continue
            try:
                sock.settimeout(CONNECT_TIMEOUT)
                cancel.attach(sock)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                cancel.check()
            except OSError as error:
                cancel.detach()
                sock.close()
                cancel.check()
                problem = error
                continue
            except BaseException:
                cancel.detach()
                sock.close()
                raise
            self._good[(host, port)] = address
            return sock
        self._good.pop((host, port), None)
        if isinstance(problem, TimeoutError) and problem.errno is None:
            raise SourceUnreachable(f"{host}:{port} did not answer within {CONNECT_TIMEOUT:.0f} s", where=where)
        reason = "it has no address" if problem is None else problem.strerror or type(problem).__name__
        raise SourceUnreachable(f"no connection to {host}:{port}: {reason}", where=where) from problem


def resolution_error(host: str, error: OSError, *, where: str) -> SourceUnreachable:
    """Return the error for a name that cannot be resolved: either there is no such host, or nobody answered."""
    what = f"the name {host} cannot be resolved: {error.strerror}"
    kind = SourceHostUnknown if error.errno in _NO_SUCH_HOST else SourceUnreachable
    return kind(what, where=where)


class ConnectionLost(Exception):
    """The peer closed or reset the connection before it sent a byte of the answer."""


class Overheard(Exception):
    """There is something to read elsewhere (`Connection.heed`)."""


class Connection:
    """A connected stream, plain or TLS.

    Used by one thread at a time.  `read` and `readline` raise `SourceStalled`, `SourceUnreachable`, `Interrupted`.
    """

    def __init__(self, sock: socket.socket, key: Hashable, *, stall_timeout: float, where: str) -> None:
        self.key = key
        self.where = where
        """Of the request under way, for messages."""
        self.uses = 0
        self.ragged = False
        """TLS ended without its closing alert: an end of file that anybody could have made."""
        self.received = 0
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._stall = stall_timeout
        self._cancel: Canceller | None = None
        self._buffer = bytearray(_BUFFER)
        self._start = 0
        self._end = 0
        self._deadline: float | None = None
        self._other: int | None = None
        self._ender: int | None = None
        self.idle_since = 0.0
        sock.settimeout(stall_timeout)

    @property
    def is_encrypted(self) -> bool:
        return self._tls is not None

    def lend(self, cancel: Canceller, *, where: str) -> None:
        """To the thread that uses it from now on."""
        self.where = where
        self._cancel = cancel
        self.uses += 1
        self.received = 0
        cancel.attach(self._sock)

    def lend_again(self, cancel: Canceller) -> None:
        """To another thread, which reads on in the same answer."""
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

    def cut(self) -> None:
        """From any thread: whoever uses it finds it lost."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def quiet(self) -> bool:
        """Nothing to read, not even an end: a server that closed it, or talks unasked, is not to be used again."""
        if self._start != self._end or (self._tls is not None and self._tls.pending()):
            return False
        poller = select.poll()
        poller.register(self._sock, select.POLLIN | select.POLLRDHUP)
        return not poller.poll(0)

    @contextlib.contextmanager
    def deadline(self) -> Iterator[None]:
        """All reads within share one stall time-out, so that a head cannot be dripped for ever."""
        self._deadline = time.monotonic() + self._stall
        try:
            yield
        finally:
            self._deadline = None
            self._sock.settimeout(self._stall)

    def unread(self, data: bytes) -> None:
        """Read this first: it came with what was read elsewhere.  At most 16 KiB, before anything else is read."""
        self._buffer[: len(data)] = data
        self._start, self._end = 0, len(data)

    def held(self) -> bytes:
        """What was received and not read yet; it is not given again."""
        data = bytes(self._buffer[self._start : self._end])
        self._start = self._end = 0
        return data

    def heed(self, other: int | None) -> None:
        """From now on a read that would wait raises `Overheard` where there is something to read at this descriptor."""
        self._other = other

    def end_at(self, descriptor: int) -> None:
        """From now on reads find the end of the stream as soon as there is something to read at this descriptor.

        Shutting the socket down for reading would do the same, but after that the kernel opens its window no more, and
        the peer waits with what it has still to send.
        """
        self._ender = descriptor

    def send(self, data: bytes | memoryview) -> None:
        """Raises `ConnectionLost` when the peer is gone."""
        try:
            self._sock.sendall(data)
        except TimeoutError as error:
            raise self._stalled() from error
        except OSError as error:
            self._check()
            raise ConnectionLost(error.strerror or type(error).__name__) from error

    def readline(self, limit: int = -1, /) -> bytes:
        """A line with its end, `limit` bytes at most; shorter only at the end of the stream."""
        if limit < 0:
            limit = _BUFFER
        line = b""
        while len(line) < limit:
            if self._start == self._end:
                self._start, self._end = 0, self._receive(memoryview(self._buffer))
                if not self._end:
                    break
            stop = min(self._end, self._start + limit - len(line))
            cut = self._buffer.find(b"\n", self._start, stop)
            stop = stop if cut < 0 else cut + 1
            line += self._buffer[self._start : stop]
            self._start = stop
            if cut >= 0:
                break
        return line

    def read(self, view: memoryview, *, due: bool = False) -> int:
        """Some bytes into `view`, which is not empty; 0 at the end of the stream.

        `due`: the peer has promised as many, so it does no harm to wait for some more of them.
        """
        held = self._end - self._start
        if held:
            count = min(held, len(view))
            view[:count] = self._buffer[self._start : self._start + count]
            self._start += count
            return count
        return self._receive(view, due=due)

    def _receive(self, view: memoryview, *, due: bool = False) -> int:
        if self._deadline is not None:
            self._sock.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            if self._other is None and self._ender is None:
                count = self._sock.recv_into(view)
                if due and self._tls is not None:
                    count = self._more_records(self._tls.recv_into, view, count)
            else:
                count = self._receive_watching(view, due=due)
        except TimeoutError as error:
            raise self._stalled() from error
        except ssl.SSLEOFError:
            count = 0
            self.ragged = True
        except OSError as error:
            self._check()
            if not self.received and isinstance(error, ConnectionError):
                raise ConnectionLost(error.strerror or "reset") from error
            reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            raise SourceUnreachable(
                f"the connection broke: {reason or type(error).__name__}", where=self.where
            ) from error
        if not count:
            self._check()
        self.received += count
        return count

    def _receive_watching(self, view: memoryview, *, due: bool) -> int:
        """The same, with an eye on the other descriptors: also while a record is there in part only."""
        timeout = self._sock.gettimeout() or 0.0
        self._sock.settimeout(0)
        try:
            count = self._receive_until(view, time.monotonic() + timeout)
            if due and self._tls is not None:
                enough = time.monotonic() + _TLS_BATCH_SECONDS
                count = self._more_records(lambda rest: self._receive_until(rest, enough), view, count)
        finally:
            self._sock.settimeout(timeout)
        return count

    def _receive_until(self, view: memoryview, until: float) -> int:
        """From a socket that does not block.  Raises `TimeoutError`, `Overheard`."""
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
                raise Overheard
            if not found and not here:
                raise TimeoutError
            try:
                return self._sock.recv_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                here = False

    @staticmethod
    def _more_records(receive: Callable[[memoryview], int], view: memoryview, count: int) -> int:
        """One read gives one record of 16 KiB at most; several at a time save the caller's work per piece."""
        wanted = min(len(view), _TLS_BATCH)
        enough = time.monotonic() + _TLS_BATCH_SECONDS
        while 0 < count < wanted and time.monotonic() < enough:
            try:
                more = receive(view[count:])
            except (OSError, Overheard):
                break  # what came is good; the next call meets the failure again
            if not more:
                break
            count += more
        return count

    def _check(self) -> None:
        if self._cancel is not None:
            self._cancel.check()

    def _stalled(self) -> Exception:
        if self._cancel is not None and self._cancel.requested:
            return Interrupted("reading was interrupted")
        return SourceStalled(f"no byte came for {self._stall:g} s", where=self.where)


class Pool:
    """Idle connections by where they lead; any thread."""

    def __init__(self, limit: int = MAX_IDLE) -> None:
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._limit = limit
        self._closed = False

    def take(self, key: Hashable) -> Connection | None:
        """The one that was used last, since it is the likeliest to be alive."""
        now = time.monotonic()
        while True:
            with self._lock:
                found = next((c for c in reversed(self._idle) if c.key == key), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if now - found.idle_since < MAX_IDLE_SECONDS and found.quiet():
                self.add(found)
                return found
            found.close()

    def add(self, connection: Connection) -> None:
        """It is in use from now on."""
        with self._lock:
            self._busy.add(connection)
            closed = self._closed
        if closed:
            connection.cut()

    def give_back(self, connection: Connection) -> None:
        """For the next request; the caller saw the last answer to its end."""
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

    def drop(self, connection: Connection) -> None:
        """It cannot be used again."""
        with self._lock:
            self._busy.discard(connection)
            # Under the lock: `close` of the pool must not cut a descriptor that is somebody else's by now.
            connection.close()

    def close(self) -> None:
        """Close the idle ones and cut off those in use."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.cut()
        for connection in idle:
            connection.close()
