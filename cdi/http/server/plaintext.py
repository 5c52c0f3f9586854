"""Replacements for TLS contexts where connections without TLS stay on one machine."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Any, cast

from cdi.api.upload_protocol import CLIENT_NAME

_CREDENTIALS = struct.Struct("3i")


class PlaintextContext:
    """A replacement for an `ssl.SSLContext` that leaves connections unencrypted."""

    def wrap_socket(
        self, sock: socket.socket, *, server_side: bool = False, do_handshake_on_connect: bool = True
    ) -> ssl.SSLSocket:
        """Return a socket without TLS that takes the descriptor of `sock`."""
        del server_side, do_handshake_on_connect
        return cast("ssl.SSLSocket", _Plain(sock, {}))


class SameUserContext(PlaintextContext):
    """A plaintext context for Unix sockets that accepts only processes of one user.

    The kernel reports the peer's user ID. An accepted peer has the client name of the upload proxy.
    """

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def wrap_socket(
        self, sock: socket.socket, *, server_side: bool = False, do_handshake_on_connect: bool = True
    ) -> ssl.SSLSocket:
        """Take the descriptor of `sock`; raise `PermissionError` if the peer is another user's process."""
        del server_side, do_handshake_on_connect
        if peer_uid(sock) != self._uid:
            raise PermissionError("the peer of the socket belongs to another user")
        return cast("ssl.SSLSocket", _Plain(sock, {"subject": ((("commonName", CLIENT_NAME),),)}))


def peer_uid(sock: socket.socket) -> int:
    """Return the user ID of the process that listens at, or connected to, a Unix socket (unix(7), SO_PEERCRED)."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


class _Plain(socket.socket):
    """A socket with the methods of an `ssl.SSLSocket` that `cdi.http.server` uses."""

    def __init__(self, sock: socket.socket, certificate: Mapping[str, Any]) -> None:
        super().__init__(family=sock.family, type=sock.type, proto=sock.proto, fileno=sock.detach())
        self._certificate = certificate

    def do_handshake(self) -> None:
        """Do nothing: there is no handshake."""

    def pending(self) -> int:
        """Return the number of decrypted bytes that a selector does not report, which is always 0."""
        return 0

    def getpeercert(self) -> Mapping[str, Any]:
        return self._certificate

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        try:
            return super().recv(size, flags)
        except BlockingIOError as error:
            raise ssl.SSLWantReadError from error
