"""Name resolution and connecting to a host, which any thread can interrupt."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

from cdi.api.errors import Interrupted, SourceHostUnknown, SourceUnreachable, SourceUrlInvalid

LOG = logging.getLogger(__name__)
CONNECT_TIMEOUT = 30.0
"""Seconds for connecting to each address of a host, and for a TLS handshake."""
MAX_ADDRESSES = 16
_NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
"""Resolver errors for a name that the name servers answer for but that has no address."""
_MAX_LABEL = 64


class SocketCanceller:
    """A handle with which one thread interrupts another thread's socket operation at once, without a timeout."""

    __slots__ = ("_lock", "_requested", "_socket")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._socket: socket.socket | None = None

    @property
    def requested(self) -> bool:
        return self._requested

    def cancel(self) -> None:
        """Interrupt the current operation and all later ones, which raise `Interrupted`. Thread-safe."""
        with self._lock:
            self._requested = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # SSLSocket.shutdown would discard the TLS state while the reader still uses it, so shut down the
                    # plain socket.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        if self._requested:
            raise Interrupted("reading was interrupted")

    def attach(self, sock: socket.socket) -> None:
        """Make `sock` the socket that `cancel` shuts down; raise `Interrupted` if already cancelled."""
        with self._lock:
            self._socket = sock
        self.check()

    def detach(self) -> None:
        """Forget the socket, so that `cancel` no longer shuts it down.

        Call this before closing the socket or passing it to another user: the kernel may reuse the descriptor at once,
        and `cancel` would shut down an unrelated socket.
        """
        with self._lock:
            self._socket = None


class Dialer:
    """A connector that tries the address of a host first that last worked.

    The servers behind several addresses often give one file different ETags, which would look like a changed file.
    """

    def __init__(self) -> None:
        self._preferred_address: dict[tuple[str, int], object] = {}

    def dial(self, host: str, port: int, cancel: SocketCanceller, *, where: str) -> socket.socket:
        """Return a connected socket, attached to `cancel`; raise `SourceUnreachable` or `Interrupted`."""
        cancel.check()
        try:
            found = socket.getaddrinfo(_resolvable(host), port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise _resolution_error(host, error, where=where) from error
        except (UnicodeError, ValueError) as error:
            raise SourceUrlInvalid(f"{host!r} is not a host name", where=where) from error
        good = self._preferred_address.get((host, port))
        found = sorted(found[:MAX_ADDRESSES], key=lambda entry: entry[4] != good)
        problem: OSError | None = None
        for family, kind, protocol, _, address in found:
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # no IPv6 support, or no file descriptors left
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
            self._preferred_address[(host, port)] = address
            LOG.debug("connected to %s port %d at %s", host, port, address[0])
            return sock
        self._preferred_address.pop((host, port), None)
        if isinstance(problem, TimeoutError) and problem.errno is None:
            raise SourceUnreachable(f"{host}:{port} did not respond within {CONNECT_TIMEOUT:.0f} s", where=where)
        reason = "the name has no address" if problem is None else problem.strerror or type(problem).__name__
        raise SourceUnreachable(f"no connection to {host}:{port}: {reason}", where=where) from problem


def _resolvable(host: str) -> str | bytes:
    """Return `host` as bytes if the IDNA codec, whose import takes longer than most look-ups, would not change it."""
    plain = host.isascii() and all(0 < len(label) < _MAX_LABEL for label in host.removesuffix(".").split("."))
    return host.encode() if plain else host


def _resolution_error(host: str, error: OSError, *, where: str) -> SourceUnreachable:
    """Return the error for a failed name resolution: an unknown host, or name servers that did not answer."""
    what = f"cannot resolve {host}: {error.strerror}"
    kind = SourceHostUnknown if error.errno in _NO_SUCH_HOST else SourceUnreachable
    return kind(what, where=where)
