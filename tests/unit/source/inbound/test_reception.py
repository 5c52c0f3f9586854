import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from cdi.api.errors import CdiError
from cdi.source.inbound.plain import PlainContext
from cdi.source.inbound.reception import Reception

MIB = 1 << 20
REFUSED = b"HTTP/1.1 401 Unauthorized\r\n"


@contextmanager
def received(serve, *, most=8, close=0.0, **options):
    reception = Reception(
        socket.create_server(("127.0.0.1", 0), backlog=512), PlainContext, serve, most=most, **options
    )
    try:
        yield reception
    finally:
        if reception._thread.is_alive():
            reception.close(close)


@contextmanager
def connected(reception):
    with socket.create_connection(("127.0.0.1", reception.port), 60) as sock:
        yield sock


def head(length, *more):
    return "\r\n".join(("POST / HTTP/1.1", "Host: h", f"Content-Length: {length}", *more, "", "")).encode()


def said(sock):
    got = b""
    while piece := sock.recv(65536):
        got += piece
    return got


def ended(sock):
    try:
        return not sock.recv(1)
    except ConnectionResetError:
        return True


def refuse(visit):
    return visit.answer(401, b"no\n")


def send_all_and_listen(reception, mebibytes):
    """As programs do that look for an answer when they have sent everything."""
    with connected(reception) as sock:
        sock.sendall(head(mebibytes * MIB))
        piece = bytes(MIB)
        for _ in range(mebibytes):
            sock.sendall(piece)
        return said(sock)


def test_who_was_refused_and_sends_it_all_still_reads_the_answer():
    with received(refuse) as reception:
        assert send_all_and_listen(reception, 200).startswith(REFUSED)


def test_many_who_go_on_sending_take_nobody_elses_turn():
    """More than there are turns, and no thread waits for any of them."""
    with received(refuse, most=2) as reception, ThreadPoolExecutor(12) as pool:
        with connected(reception) as idle:
            idle.sendall(head(MIB))
            answers = list(pool.map(lambda _: send_all_and_listen(reception, 10), range(24)))
            assert idle.recv(65536).startswith(REFUSED)
    # Where it has no turn it is told so, and reads that too.
    assert all(answer.startswith((REFUSED, b"HTTP/1.1 503 ")) for answer in answers)
    assert sum(answer.startswith(REFUSED) for answer in answers) > 0


def test_a_turn_ends_with_the_answer():
    with received(refuse, most=1) as reception, connected(reception) as first, connected(reception) as second:
        first.sendall(head(MIB))
        while b"\r\n\r\n" not in first.recv(65536):
            pass
        until_free(reception)
        second.sendall(head(MIB))
        assert second.recv(65536).startswith(REFUSED)


def until_free(reception):
    with reception._left:
        assert reception._left.wait_for(lambda: not reception._busy, 60)


def test_the_end_waits_for_an_answer_to_be_heard():
    begun = threading.Event()

    def serve(visit):
        begun.set()
        return visit.answer(200, b"done\n")

    with ThreadPoolExecutor(1) as pool:
        with received(serve, close=60.0) as reception:
            answer = pool.submit(send_all_and_listen, reception, 50)
            assert begun.wait(60)
        assert answer.result().startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_end_interrupts_those_who_are_served_and_they_hear_why():
    begun = threading.Event()

    def serve(visit):
        begun.set()
        try:
            visit.body.readinto(memoryview(bytearray(10)))
        except CdiError as error:
            return visit.refuse(error, 503)
        raise AssertionError("nothing was sent")

    with received(serve) as reception, connected(reception) as sock:
        sock.sendall(head(5))
        assert begun.wait(60)
        reception.close()
        assert said(sock).startswith(b"HTTP/1.1 503 ")


def test_nobody_is_heard_who_comes_after_the_end():
    with received(refuse) as reception, connected(reception) as silent:
        silent.sendall(b"POST / HTTP/1.1\r\n")
        port = reception.port
        reception.close(60.0)
        assert ended(silent)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_another_request_on_the_same_connection():
    with received(lambda visit: visit.answer(200, visit.head.path.encode())) as reception, connected(reception) as sock:
        sock.sendall(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        got = said(sock)
        assert (b"/a" in got, b"/b" in got, got.count(b"200 OK")) == (True, True, 2)


def test_where_no_descriptor_is_left_who_has_waited_longest_goes():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        # The limit is the process's, so the clients' are made before.
        clients = [stack.enter_context(socket.socket()) for _ in range(40)]
        reception = stack.enter_context(received(refuse, head_seconds=3600.0))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor() + 10, hard))
        for client in clients:
            client.settimeout(60)
            client.connect(("127.0.0.1", reception.port))
        clients[-1].sendall(head(0))
        assert clients[-1].recv(65536).startswith(REFUSED)
        assert ended(clients[0])


def next_descriptor():
    with socket.socket() as sock:
        return sock.fileno()
