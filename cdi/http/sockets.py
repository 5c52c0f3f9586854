"""Listening sockets, and options of connected ones."""

from __future__ import annotations

import socket

from cdi.api.errors import UsageError

_BACKLOG = 512


def listen(port: int, address: str = "") -> socket.socket:
    """Return a socket that listens on a port, 0 for any free one; raise `OSError`.

    Without an address it accepts connections to all addresses of the machine, IPv4 and IPv6.
    """
    both = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, dualstack_ipv6=both, backlog=_BACKLOG)


def listen_as_asked(port: int, address: str = "", *, option: str = "--port") -> socket.socket:
    """Listen as `listen` does on the port of a command's option; raise `UsageError` if that is not possible."""
    try:
        return listen(port, address)
    except OSError as error:
        where = f"{address}:{port}" if address else f"port {port}"
        raise UsageError(
            f"cannot listen on {where}: {error.strerror}", remedy=f"choose another one with {option}"
        ) from error


def detect_lost_peer(sock: socket.socket) -> None:
    """Send small packets early, and have the kernel end a connection whose other end does not answer for a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
