import contextlib
import resource
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import trustme

from cdi.api.errors import CdiError
from cdi.http.server.listener import MAX_UNVERIFIED_REQUESTS, HttpListener, ListenerState
from cdi.http.server.plaintext import PlaintextContext
from cdi.http.server.turn import Turn, in_turns

MIB = 1 << 20
REFUSED = b"HTTP/1.1 401 Unauthorized\r\n"


@contextmanager
def received(serve, *, most=8, close=0.0, **options):
    reception = HttpListener(
        socket.create_server(("127.0.0.1", 0), backlog=512), PlaintextContext, in_turns(serve), most=most, **options
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


def refuse(server_request):
    return server_request.respond(401, b"no\n")


def send_all_and_listen(reception, mebibytes):
    """Send the whole request before reading the response, as many clients do."""
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
    """There are more clients than worker threads, and no thread waits for any of them."""
    with received(refuse, most=2) as reception, ThreadPoolExecutor(12) as pool:
        with connected(reception) as idle:
            idle.sendall(head(MIB))
            answers = list(pool.map(lambda _: send_all_and_listen(reception, 10), range(24)))
            assert idle.recv(65536).startswith(REFUSED)
    # A client without a free thread gets 503, and reads that as well.
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
    with reception._state_changed:
        assert reception._state_changed.wait_for(lambda: not reception._busy, 60)


def test_the_end_waits_for_an_answer_to_be_heard():
    begun = threading.Event()

    def serve(server_request):
        begun.set()
        return server_request.respond(200, b"done\n")

    with ThreadPoolExecutor(1) as pool:
        with received(serve, close=60.0) as reception:
            answer = pool.submit(send_all_and_listen, reception, 50)
            assert begun.wait(60)
        assert answer.result().startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_end_interrupts_those_who_are_served_and_they_hear_why():
    begun = threading.Event()

    def serve(server_request):
        begun.set()
        try:
            server_request.body.readinto(memoryview(bytearray(10)))
        except CdiError as error:
            return server_request.respond_error(error, 503)
        raise AssertionError("nothing was sent")

    with received(serve) as reception, connected(reception) as sock:
        sock.sendall(head(5))
        assert begun.wait(60)
        reception.close()
        assert said(sock).startswith(b"HTTP/1.1 503 ")


def test_who_was_interrupted_and_sends_it_all_still_reads_the_answer():
    """The response must not wait for buffer space: the kernel keeps accepting what the client sends."""

    def serve(server_request):
        buffer = memoryview(bytearray(MIB))
        server_request.body.readinto(buffer)
        threading.Thread(target=server_request.interrupt).start()
        try:
            while server_request.body.readinto(buffer):
                pass
        except CdiError as error:
            return server_request.respond_error(error, 503)
        raise AssertionError("it was not interrupted")

    with received(serve) as reception:
        for _ in range(3):
            assert send_all_and_listen(reception, 100).startswith(b"HTTP/1.1 503 ")


def test_a_read_is_interrupted_in_the_middle_of_a_record(tls_pair):
    """A client that is lost there sends no further byte."""
    ours, theirs = tls_pair
    begun = threading.Event()

    def serve(server_request):
        body = server_request.body
        begun.set()
        try:
            body.readinto(memoryview(bytearray(10)))
        except CdiError as error:
            return server_request.respond_error(error, 503)
        raise AssertionError("there is no whole record")

    begin = in_turns(serve)
    listener = socket.create_server(("127.0.0.1", 0))
    reception = HttpListener(listener, lambda: ours, begin, most=1, stall_timeout=3600.0)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", reception.port), 60) as sock:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        client.write(head(5))
        sock.sendall(outgoing.read())
        assert begun.wait(60)
        client.write(b"bytes")
        sock.sendall(outgoing.read()[:-1])
        reception.close()
        answer = b""
        while piece := sock.recv(65536):
            incoming.write(piece)
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := client.read(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 503 ")


@pytest.fixture(scope="module")
def tls_pair():
    """Return TLS contexts of a server and of a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def test_nobody_is_heard_who_comes_after_the_end():
    with received(refuse) as reception, connected(reception) as silent:
        silent.sendall(b"POST / HTTP/1.1\r\n")
        port = reception.port
        reception.close(60.0)
        assert ended(silent)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_another_request_on_the_same_connection():
    with (
        received(lambda server_request: server_request.respond(200, server_request.head.path.encode())) as reception,
        connected(reception) as sock,
    ):
        sock.sendall(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        got = said(sock)
        assert (b"/a" in got, b"/b" in got, got.count(b"200 OK")) == (True, True, 2)


def test_where_no_descriptor_is_left_who_has_waited_longest_goes():
    with ExitStack() as stack:
        reception = stack.enter_context(received(refuse, head_seconds=3600.0))
        # The limit applies to the process, so the clients' sockets are created before.
        clients = [stack.enter_context(socket.socket()) for _ in range(40)]
        stack.enter_context(descriptors_left(10))
        for client in clients:
            client.settimeout(60)
            client.connect(("127.0.0.1", reception.port))
        clients[-1].sendall(head(0))
        assert clients[-1].recv(65536).startswith(REFUSED)
        assert ended(clients[0])


@contextmanager
def descriptors_left(count):
    """Limit this process to so many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is on the number of a descriptor, and the free numbers need not be adjacent.
    with ExitStack() as stack:
        highest = max(stack.enter_context(socket.socket()).fileno() for _ in range(count))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_empty_line_before_a_request_is_ignored():
    """Some clients send one after a body (RFC 9112, section 2.2)."""
    with (
        received(lambda server_request: server_request.respond(200, server_request.head.path.encode())) as reception,
        connected(reception) as sock,
    ):
        sock.sendall(
            b"\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        )
        got = said(sock)
        assert (b"/a" in got, b"/b" in got, got.count(b"200 OK")) == (True, True, 2)


# --- clients that do not read ---------------------------------------------------------------------------------------

LARGE = bytes(4 * MIB)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
GET_AND_CLOSE = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@contextmanager
def unreading(reception, request=GET):
    """Yield a client that has sent a request and does not read the response."""
    with small_buffered() as sock:
        sock.connect(("127.0.0.1", reception.port))
        sock.sendall(request)
        yield sock


def small_buffered():
    """Return a socket whose kernel buffer holds little of what it does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    return sock


def test_who_does_not_read_takes_no_turn():
    with received(lambda server_request: server_request.respond(200, LARGE), most=1) as reception, ExitStack() as stack:
        for number in range(5):
            stack.enter_context(unreading(reception))
            await_pending(reception, number + 1)
        with connected(reception) as sock:
            sock.sendall(GET_AND_CLOSE)
            assert said(sock).endswith(LARGE)


def await_pending(reception, count):
    """Wait until this many responses are pending."""
    deadline = time.monotonic() + 60
    while reception._pending.count != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_reads_at_last_has_all_of_it_and_may_ask_again():
    with (
        received(lambda server_request: server_request.respond(200, LARGE), most=1) as reception,
        unreading(reception) as sock,
    ):
        await_pending(reception, 1)
        for _ in range(2):
            got = b""
            while not got.endswith(LARGE):
                got += sock.recv(MIB)
            sock.sendall(GET)


def test_the_end_waits_for_who_reads_slowly():
    with received(lambda server_request: server_request.respond(200, LARGE)) as reception, unreading(reception) as sock:
        await_pending(reception, 1)
        with ThreadPoolExecutor(1) as pool:
            closing = pool.submit(reception.close, 60.0)
            assert said(sock).endswith(LARGE)
            closing.result()


def test_where_no_descriptor_is_left_who_does_not_read_goes():
    with ExitStack() as stack:
        reception = stack.enter_context(received(lambda server_request: server_request.respond(200, LARGE), most=40))
        # As above, and so many clients that a descriptor closed by another thread makes no difference.
        clients = [stack.enter_context(small_buffered()) for _ in range(40)]
        stack.enter_context(descriptors_left(10))
        for client in clients:
            client.connect(("127.0.0.1", reception.port))
            client.sendall(GET_AND_CLOSE)
            assert client.recv(1) == b"H"
        assert drained(clients[-1]).endswith(LARGE)
        assert not all(drained(client).endswith(LARGE) for client in clients[:-1])


def drained(sock):
    got = b""
    try:
        while piece := sock.recv(MIB):
            got += piece
    except ConnectionResetError:
        pass
    return got


# --- concurrency limits ---------------------------------------------------------------------------------------------


class Desk:
    """A handler that answers ``/free`` at once, and ``/good`` (with a valid token) and ``/unknown`` when released."""

    def __init__(self):
        self.begun = threading.Semaphore(0)
        self.end = threading.Event()

    def begin(self, server_request):
        if server_request.head.path == "/free":
            return server_request.respond(200)
        if server_request.head.path == "/defect":
            raise ZeroDivisionError
        return Turn(run=self.wait, verified=server_request.head.path == "/good")

    def wait(self, server_request):
        self.begun.release()
        assert self.end.wait(60)
        return server_request.respond(200)


@contextmanager
def distributed(**options):
    backend = Desk()
    reception = HttpListener(
        socket.create_server(("127.0.0.1", 0), backlog=512), PlaintextContext, backend.begin, **options
    )
    try:
        yield reception, backend
    finally:
        backend.end.set()
        reception.close(60.0)


def ask(sock, path):
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())


def status(sock):
    got = b""
    while b"\r\n\r\n" not in got:
        piece = sock.recv(65536)
        assert piece
        got += piece
    return int(got.split(b" ", 2)[1])


def test_some_turns_are_for_those_only_who_have_shown_who_they_are():
    with distributed(most=3, most_unverified=1) as (reception, backend), ExitStack() as stack:
        first, second, *good, extra = (stack.enter_context(connected(reception)) for _ in range(5))
        ask(first, "/unknown")
        assert backend.begun.acquire(timeout=60)
        ask(second, "/unknown")
        assert status(second) == 503
        for sock in good:
            ask(sock, "/good")
            assert backend.begun.acquire(timeout=60)
        # Requests that need no thread are answered even when none is free.
        ask(extra, "/good")
        assert status(extra) == 503
        ask(extra, "/free")
        assert status(extra) == 200
        assert reception.busy == 3
        backend.end.set()
        assert [status(sock) for sock in (first, *good)] == [200, 200, 200]
        until_free(reception)  # a turn ends after its answer
        ask(second, "/unknown")
        assert status(second) == 200


def test_a_defect_of_one_request_is_its_own():
    with distributed(most=1) as (reception, _), connected(reception) as sock, connected(reception) as other:
        ask(sock, "/defect")
        assert status(sock) == 500
        ask(other, "/free")
        assert status(other) == 200


def test_who_shows_nothing_has_so_many_requests_on_a_connection():
    with distributed(most=1) as (reception, backend), connected(reception) as sock:
        backend.end.set()
        for path in (
            ("/free",) * (MAX_UNVERIFIED_REQUESTS - 1) + ("/good",) + ("/free",) * (MAX_UNVERIFIED_REQUESTS - 1)
        ):
            ask(sock, path)
            assert status(sock) == 200
        ask(sock, "/free")
        assert b"\r\nConnection: close\r\n" in said(sock)


def test_requests_that_come_at_once_are_answered_one_after_the_other():
    with distributed(most=1) as (reception, _), connected(reception) as sock:
        text = b"GET /free HTTP/1.1\r\nHost: h\r\n\r\n"
        sock.sendall(text * 2000)
        assert said(sock).count(b"HTTP/1.1 200 ") == MAX_UNVERIFIED_REQUESTS


def test_a_listener_shows_its_state_and_logs_connections_and_requests(caplog):
    caplog.set_level("DEBUG", logger="cdi.http.server")
    shown = []

    def serve(server_request):
        shown.append(repr(reception))
        return server_request.respond(200)

    with received(serve) as reception:
        assert reception.state is ListenerState.ACCEPTING
        with connected(reception) as sock:
            sock.sendall(b"GET /path?secret HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert said(sock).startswith(b"HTTP/1.1 200 ")
        reception.close()
        assert repr(reception) == "<HttpListener: closed, 0 pending connections, 0 requests>"
    assert shown == ["<HttpListener: accepting, 0 pending connections, 1 requests>"]
    assert [record.getMessage() for record in caplog.records] == ["connection from 127.0.0.1", "GET /path: 200"]
