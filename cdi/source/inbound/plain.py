"""Connections without TLS, for those who stay on one machine, in the place of those with it."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Any, cast

from cdi.api.upload_protocol import CLIENT_NAME

_CREDENTIALS = struct.Struct("3i")


class PlainContext:
    """Wraps nothing: in the place of an `ssl.SSLContext` where none is wanted."""

    def wrap_socket(
        self, sock: socket.socket, *, server_side: bool = False, do_handshake_on_connect: bool = True
    ) -> ssl.SSLSocket:
        """Takes `sock` over."""
        del server_side, do_handshake_on_connect
        return cast("ssl.SSLSocket", _Plain(sock, {}))


class OwnContext(PlainContext):
    """The same for Unix sockets, where the kernel tells who the other side is: this user, who counts as the proxy."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def wrap_socket(
        self, sock: socket.socket, *, server_side: bool = False, do_handshake_on_connect: bool = True
    ) -> ssl.SSLSocket:
        """Takes `sock` over.  Raises `PermissionError` where it is another user's."""
        del server_side, do_handshake_on_connect
        if peer_uid(sock) != self._uid:
            raise PermissionError("the socket is another user's")
        return cast("ssl.SSLSocket", _Plain(sock, {"subject": ((("commonName", CLIENT_NAME),),)}))


def peer_uid(sock: socket.socket) -> int:
    """Of who listens at, or has connected to, a Unix socket (unix(7), SO_PEERCRED)."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


class _Plain(socket.socket):
    """What `cdi.source.inbound` wants of an `ssl.SSLSocket`."""

    def __init__(self, sock: socket.socket, certificate: Mapping[str, Any]) -> None:
        super().__init__(family=sock.family, type=sock.type, proto=sock.proto, fileno=sock.detach())
        self._certificate = certificate

    def do_handshake(self) -> None:
        """There is none."""

    def pending(self) -> int:
        """Bytes that are here and that a selector does not show."""
        return 0

    def getpeercert(self) -> Mapping[str, Any]:
        return self._certificate

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        try:
            return super().recv(size, flags)
        except BlockingIOError as error:
            raise ssl.SSLWantReadError from error
