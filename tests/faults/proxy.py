"""A small HTTP proxy: CONNECT tunnels and absolute-form GETs, with optional basic authentication.

with ForwardProxy(authorization="Basic …") as proxy:
    proxy.url           # http://127.0.0.1:port
    proxy.requests      # request lines, in order of arrival
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from typing import Self


class ForwardProxy:
    """A running proxy.

    Attributes:
        status: the status to answer every request with instead of serving it.
        greeting: bytes to send into each tunnel.
        tls: the context of a proxy that is itself reached over TLS.
    """

    def __init__(
        self,
        *,
        authorization: str | None = None,
        status: int | None = None,
        greeting: bytes = b"",
        offers: str = "Basic",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._offers = offers
        self._authorization = authorization
        self._status = status
        self._greeting = greeting
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self.requests: list[str] = []
        self.headers: list[str] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, sock)

    def _serve(self, client: socket.socket) -> None:
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                return
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not select.select([client], [], [], 0.05)[0]:
                    if self._stopping.is_set():
                        return
                    continue
                more = client.recv(65536)
                if not more:
                    return
                head += more
            text = head.decode("latin-1")
            self.requests.append(text.partition("\r\n")[0])
            self.headers.append(text)
            if self._status is not None:
                client.sendall(f"HTTP/1.1 {self._status} No\r\nContent-Length: 0\r\n\r\n".encode())
                return
            if self._authorization and f"Proxy-Authorization: {self._authorization}\r\n" not in text:
                offers = f"Proxy-Authenticate: {self._offers}\r\n"
                client.sendall(f"HTTP/1.1 407 Auth\r\n{offers}Content-Length: 0\r\n\r\n".encode())
                return
            method, target, _ = self.requests[-1].split(" ")
            if method == "CONNECT":
                place = target
            else:
                place, _, path = target.removeprefix("http://").partition("/")
                text = text.replace(target, f"/{path}", 1)
            host, _, port = place.rpartition(":")
            try:
                server = socket.create_connection((host.strip("[]"), int(port)))
            except OSError:
                client.sendall(b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n")
                return
            with server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n" + self._greeting)
                else:
                    server.sendall(text.encode("latin-1"))
                self._copy(client, server)

    def _copy(self, client: socket.socket, server: socket.socket) -> None:
        while not self._stopping.is_set():
            for ready in select.select([client, server], [], [], 0.05)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                (server if ready is client else client).sendall(data)
