"""Proxy that delays every byte by half a round trip, in both directions.

    python delay.py LISTEN_PORT TARGET_PORT ROUND_TRIP_SECONDS

It replaces `tc netem` where the kernel lacks it.  As with TCP over a long distance, at most a window of bytes is in
flight on each connection, so a single connection is limited to window / round trip; opening one costs a round trip.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import sys
import threading
import time

WINDOW = 4 << 20
"""Bytes under way at a time on one connection and direction; Linux's usual limit of a receive window is 6 MiB."""
CHUNK_SIZE = 256 << 10


class Pipe:
    """Relay one direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay: float, first_delay: float) -> None:
        self.source, self.sink, self.delay = source, sink, delay
        self.first_due = time.monotonic() + first_delay
        self.queue: collections.deque[tuple[float, bytes]] = collections.deque()
        self.under_way = 0
        self.changed = threading.Condition()
        self.broken = False

    def receive(self) -> None:
        while True:
            try:
                data = self.source.recv(CHUNK_SIZE)
            except OSError:
                data = b""
            with self.changed:
                # The window opens when bytes have arrived at the other side.
                self.changed.wait_for(lambda: self.under_way < WINDOW or self.broken)
                self.queue.append((max(time.monotonic() + self.delay, self.first_due), data))
                self.under_way += len(data)
                self.changed.notify_all()
            if not data or self.broken:
                return

    def send(self) -> None:
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.queue)
                    due, data = self.queue.popleft()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    self.sink.shutdown(socket.SHUT_WR)
                    return
                self.sink.sendall(data)
                with self.changed:
                    self.under_way -= len(data)
                    self.changed.notify_all()
        except OSError:
            with self.changed:
                self.broken = True
                self.changed.notify_all()
            for end in (self.source, self.sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def carry(client: socket.socket, target_port: int, round_trip: float) -> None:
    with client:
        try:
            server = socket.create_connection(("127.0.0.1", target_port))
        except OSError:
            return
        with server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The handshake's round trip, which the loopback spared the client.
            pipes = (
                Pipe(client, server, round_trip / 2, round_trip * 1.5),
                Pipe(server, client, round_trip / 2, 0.0),
            )
            threads = [
                threading.Thread(target=work, daemon=True) for pipe in pipes for work in (pipe.receive, pipe.send)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def main() -> None:
    port, target_port, round_trip = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=carry, args=(client, target_port, round_trip), daemon=True).start()


if __name__ == "__main__":
    main()
