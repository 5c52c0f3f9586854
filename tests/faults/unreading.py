"""Clients that send requests repeatedly, never read a response, and reconnect when they are disconnected."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

_PIPELINED = 50_000
"""Requests on a connection: more than the kernels on the path buffer."""
_CONNECTING = 60.0
_STUCK = 1.0
"""Seconds without a read by the server after which it counts as waiting for its client to read."""


@dataclass(eq=False)
class _Client:
    sock: socket.socket
    left: memoryview
    moved: float
    """The time when the server last read something."""


class Unreading:
    """This many such clients at any time, each in a thread of its own."""

    def __init__(self, port: int, request: bytes, count: int, context: ssl.SSLContext | None = None) -> None:
        self._address = ("127.0.0.1", port)
        self._requests = memoryview(request * _PIPELINED)
        self._context = context
        self._clients: dict[int, _Client] = {}
        self._count = count
        self._poller = select.poll()
        self._ended = threading.Event()
        self.thrown_out = 0
        self._thread = threading.Thread(target=self._run, name="unreading", daemon=True)
        self._thread.start()

    def await_stuck(self) -> None:
        """Wait until the server is blocked on every client, or has disconnected as many."""
        deadline = time.monotonic() + 200
        while self.thrown_out + self._stuck() < self._count:
            assert time.monotonic() < deadline, f"{self._stuck()} are stuck and {self.thrown_out} thrown out"
            assert self._thread.is_alive()
            time.sleep(0.05)

    def await_return(self) -> None:
        """Wait until a client is connected: disconnected clients connect again, one after the other."""
        deadline = time.monotonic() + 200
        while not self._clients:
            assert time.monotonic() < deadline and self._thread.is_alive(), f"all {self.thrown_out} are thrown out"
            time.sleep(0.05)

    def _stuck(self) -> int:
        latest = time.monotonic() - _STUCK
        return sum(client.moved < latest for client in list(self._clients.values()))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        for client in self._clients.values():
            client.sock.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            if len(self._clients) < self._count:
                with contextlib.suppress(OSError):
                    self._connect()
            for descriptor, event in self._poller.poll(50 if len(self._clients) == self._count else 0):
                client = self._clients[descriptor]
                if event & (select.POLLERR | select.POLLHUP) or not self._ask(client):
                    self._poller.unregister(descriptor)
                    del self._clients[descriptor]
                    client.sock.close()
                    self.thrown_out += 1

    def _connect(self) -> None:
        sock = socket.socket()
        try:
            # With its own segment size, loopback would buffer megabytes for a client that does not read.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            sock.settimeout(_CONNECTING)
            sock.connect(self._address)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname="localhost")
            sock.settimeout(0)
        except BaseException:
            sock.close()
            raise
        self._clients[sock.fileno()] = _Client(sock, self._requests, time.monotonic())
        self._poller.register(sock, select.POLLOUT)

    def _ask(self, client: _Client) -> bool:
        """Send requests; return whether the connection can be used further."""
        try:
            client.left = client.left[client.sock.send(client.left[:16384]) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False
        client.moved = time.monotonic()
        if not client.left:
            self._poller.modify(client.sock, 0)
        return True


@contextlib.contextmanager
def unreading(port: int, request: bytes, count: int, context: ssl.SSLContext | None = None) -> Iterator[Unreading]:
    """Run such clients; the server has met all of them when the context begins."""
    clients = Unreading(port, request, count, context)
    try:
        clients.await_stuck()
        yield clients
    finally:
        clients.end()
