from __future__ import annotations

import socket
import threading

import pytest

from cdi.api.errors import Interrupted, SourceHostUnknown, SourceUnreachable, SourceUrlInvalid
from cdi.http.connection import Connection, ConnectionPool, ConnectionState
from cdi.http.dialer import Dialer, SocketCanceller


def answers(port: int, *hosts: str) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]


def test_the_address_that_answered_is_tried_first_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with socket.create_server(("127.0.0.2", port)):
            dialer = Dialer()
            reached = []
            for order in (("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "127.0.0.2"), ("127.0.0.1",)):
                monkeypatch.setattr(socket, "getaddrinfo", lambda *_, order=order, **__: answers(port, *order))
                with dialer.dial("mirror", port, SocketCanceller(), where="x") as sock:
                    reached.append(sock.getpeername()[0])
    assert reached == ["127.0.0.2", "127.0.0.2", "127.0.0.1"]


def test_an_address_that_is_dead_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers(port, "127.0.0.9", "127.0.0.1"))
        with Dialer().dial("mirror", port, SocketCanceller(), where="x") as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers(port, "127.0.0.9"))
        with pytest.raises(SourceUnreachable, match="refused"):
            Dialer().dial("mirror", port, SocketCanceller(), where="x")


@pytest.mark.parametrize(
    ("number", "kind"), [(socket.EAI_NONAME, SourceHostUnknown), (socket.EAI_AGAIN, SourceUnreachable)]
)
def test_a_host_that_there_is_not_is_told_from_name_servers_that_are_away(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SourceUnreachable]
) -> None:
    def unresolved(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    with pytest.raises(SourceUnreachable, match="cannot resolve mirror: no answer") as caught:
        Dialer().dial("mirror", 80, SocketCanceller(), where="x")
    assert type(caught.value) is kind


def test_names_that_are_none_are_refused() -> None:
    with pytest.raises(SourceUrlInvalid):
        Dialer().dial("a" * 70, 80, SocketCanceller(), where="x")


def test_a_connection_attempt_can_be_interrupted() -> None:
    # A full backlog: the kernel drops further SYNs, so connecting hangs as with a firewall that swallows them.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        cancel = SocketCanceller()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                Dialer().dial("127.0.0.1", port, cancel, where="x").close()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(timeout=0.3)
        assert thread.is_alive()
        cancel.cancel()
        thread.join(timeout=60)
        for filler in fillers:
            filler.close()
    assert isinstance(failures[0], Interrupted)


def pair() -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    return Connection(ours, "key", stall_timeout=5, where="x"), theirs


def test_lines_and_bytes_come_from_one_stream() -> None:
    connection, peer = pair()
    with peer:
        peer.sendall(b"first\nsecond, longer\nbody")
        assert connection.readline(100) == b"first\n"
        assert connection.readline(6) == b"second"
        assert connection.readline() == b", longer\n"
        view = memoryview(bytearray(10))
        assert connection.read(view[:2]) == 2
        assert connection.read(view[2:]) == 2
        assert view[:4] == b"body"
        peer.shutdown(socket.SHUT_WR)
        assert connection.read(view) == 0
        assert connection.readline() == b""
    connection.close()


def test_only_quiet_connections_are_used_again() -> None:
    pool = ConnectionPool(limit=2)
    quiet, peer1 = pair()
    talking, peer2 = pair()
    closed, peer3 = pair()
    with peer1, peer2, peer3:
        for connection in (quiet, talking):
            pool.add(connection)
            pool.release(connection)
        peer2.sendall(b"HTTP/1.1 408 Request Timeout\r\n")
        assert pool.acquire("other") is None
        assert pool.acquire("key") is quiet
        assert pool.acquire("key") is None
        pool.release(quiet)
        pool.add(closed)
        pool.release(closed)
        peer3.close()
        assert pool.acquire("key") is quiet
        pool.discard(quiet)
    pool.close()


def test_idle_connections_are_few_and_none_stay_after_closing() -> None:
    pool = ConnectionPool(limit=2)
    pairs = [pair() for _ in range(3)]
    for connection, _ in pairs:
        pool.add(connection)
        pool.release(connection)
    assert pairs[0][1].recv(1) == b""
    busy = pool.acquire("key")
    assert busy is pairs[2][0]
    pool.close()
    assert pairs[1][1].recv(1) == b""
    assert pairs[2][1].recv(1) == b""
    pool.release(busy)
    assert pool.acquire("key") is None
    for _, peer in pairs:
        peer.close()


def test_a_connection_shows_its_state() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = Connection(ours, "key", stall_timeout=1.0, where="http://h/x")
        assert repr(connection) == "<Connection for http://h/x: idle, 0 bytes received>"
        connection.acquire(SocketCanceller(), where="http://h/y")
        assert connection.state is ConnectionState.ACTIVE
        assert "http://h/y: active" in repr(connection)
        connection.close()
        assert connection.state is ConnectionState.CLOSED
