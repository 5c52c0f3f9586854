"""Tests of the relay to an upload server of another version, or one that fails."""

import secrets
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from cdi.api.errors import Retry
from cdi.http.server.request import ServerRequest
from cdi.http.server.request_head import parse
from cdi.server.proxy.relay import MAX_REPLAYED, BodyStart, ServerLost, relay
from cdi.server.proxy.volumes import Destination

MIB = 1 << 20
END = 1 << 40
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Server:
    """A scripted server in a thread; `heard` is all that it received."""

    def __init__(self, *lines):
        """Create a server from steps.

        Args:
            lines: what to send, or what to read before the next is sent: a number of bytes, or up to the end of chunks.
        """
        self.name = f"\0cdi-test-{secrets.token_hex(8)}"
        self.heard = b""
        self._lines = lines
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.name)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._thread.join(60)
        self._listener.close()
        assert not self._thread.is_alive()

    def send(self, sock, data):
        sock.sendall(data)

    def _run(self):
        with self._listener.accept()[0] as sock:
            self.head = b""
            while not self.head.endswith(b"\r\n\r\n"):
                self.head += sock.recv(1)
            for each in self._lines:
                if isinstance(each, bytes):
                    self.send(sock, each)
                    continue
                wanted = len(self.heard) + each
                while len(self.heard) < wanted and (piece := sock.recv(min(MIB, wanted - len(self.heard)))):
                    self.heard += piece
                    if each == END and self.heard.endswith(b"\r\n0\r\n\r\n"):
                        break


@contextmanager
def request(content, *, chunked=False, size=100_000):
    """Yield the request of a client that has sent all of it, as the proxy sees it."""
    ours, theirs = socket.socketpair()
    coding = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(content)}"
    head = parse(f"POST /v1beta1/upload HTTP/1.1\r\nHost: h\r\n{coding}\r\n\r\n".encode())

    def send():
        with suppress(OSError):  # the response came before all was sent
            theirs.sendall(body(content, size) if chunked else content)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        yield ServerRequest(ours, head, b"", stall_timeout=30.0, where="the client")
    finally:
        ours.close()
        sending.join(60)
        theirs.close()


def body(content, size):
    pieces = (content[at : at + size] for at in range(0, len(content), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def passed_on(server, server_request, start):
    return relay(server_request, Destination(host="h", local=server.name), None, start, lambda: None, lambda _: None)


CONTENT = bytes(range(256)) * (MIB // 256)


def test_a_server_that_does_not_know_the_field_is_sent_all_of_it():
    start = BodyStart()
    with request(CONTENT) as server_request, Server(b"HTTP/1.1 100 Continue\r\n\r\n", MIB, OK) as server:
        assert passed_on(server, server_request, start).status == 200
    assert (server.heard, start.dropped) == (CONTENT, True)


def test_a_server_that_knows_it_is_sent_no_more_than_what_is_kept_before_it_says_so():
    start = BodyStart()
    known = f"HTTP/1.1 100 Continue\r\nCdi-Body-Kept: {MAX_REPLAYED}\r\n\r\n".encode()

    class Slow(Server):
        def send(self, sock, data):
            if data.startswith(b"HTTP/1.1 102"):
                self.before = self.heard
                sock.settimeout(1.0)
                with pytest.raises(TimeoutError):
                    sock.recv(1)
                sock.settimeout(None)
            super().send(sock, data)

    lines = (known, MAX_REPLAYED, b"HTTP/1.1 102 Processing\r\n\r\n", MIB - MAX_REPLAYED, OK)
    with request(CONTENT) as server_request, Slow(*lines) as server:
        assert passed_on(server, server_request, start).status == 200
    assert server.before == CONTENT[:MAX_REPLAYED]
    assert server.heard == CONTENT


def test_a_sign_to_go_on_may_come_early():
    known = f"HTTP/1.1 100 Continue\r\nCdi-Body-Kept: {MAX_REPLAYED}\r\n\r\n".encode()
    start = BodyStart()
    lines = (known, 1000, b"HTTP/1.1 102 Processing\r\n\r\n", MIB - 1000, OK)
    with request(CONTENT) as server_request, Server(*lines) as server:
        assert passed_on(server, server_request, start).status == 200
    assert (server.heard, start.dropped) == (CONTENT, True)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("commits", [False, True])
def test_a_response_is_passed_on_while_the_server_reads_no_more(commits, chunked):
    """The server keeps the connection open and reads nothing until the client has the response."""
    passed = threading.Event()

    class Deaf(Server):
        def _run(self):
            with self._listener.accept()[0] as sock:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += sock.recv(1)
                sock.sendall(f"HTTP/1.1 100 Continue\r\nCdi-Body-Kept: {MAX_REPLAYED}\r\n\r\n".encode())
                if commits:
                    sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
                wait_until_blocked(sock)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")
                self.heard = passed.wait(60)

    with request(CONTENT * 8, chunked=chunked) as server_request, Deaf() as server:
        answer = passed_on(server, server_request, BodyStart())
        passed.set()
    assert (answer.status, answer.body) == (400, b"no")
    assert server.heard is True


def wait_until_blocked(sock):
    """Return once the peer has sent something, and then nothing more for a while, since the buffers are full."""
    before = -1
    while (now := len(sock.recv(16 * MIB, socket.MSG_PEEK))) != before:
        before = now
        time.sleep(0.2)


def unchunked(data, chunked):
    if not chunked:
        return data
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found, data = found + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return found


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1, 1000, MAX_REPLAYED - 1, MAX_REPLAYED, MAX_REPLAYED + 1, MIB])
def test_what_one_server_was_sent_is_sent_to_the_next(size, chunked):
    """The first server closes without a response: before it reads, after some bytes, or after all kept bytes."""
    content, start = CONTENT[:size], BodyStart()
    known = f"HTTP/1.1 100 Continue\r\nCdi-Body-Kept: {MAX_REPLAYED}\r\n\r\n".encode()
    with request(content, chunked=chunked) as server_request:
        for reads in (0, min(size, 100), min(size, MAX_REPLAYED)):
            with Server(known, reads) as server, pytest.raises(ServerLost):
                passed_on(server, server_request, start)
            assert not start.dropped
        said = (
            (MAX_REPLAYED, b"HTTP/1.1 102 Processing\r\n\r\n")
            if size > MAX_REPLAYED or (chunked and size == MAX_REPLAYED)
            else ()
        )
        rest = END if chunked else size - sum(each for each in said if isinstance(each, int))
        with Server(known, *said, rest, OK) as server:
            assert passed_on(server, server_request, start).status == 200
    assert unchunked(server.heard, chunked) == content


def test_a_refusal_is_read_and_is_put_into_words_by_the_proxy():
    document = b'{"code": "ScratchNeeded", "message": "no room", "retry": "on-change"}'
    answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    with request(CONTENT) as server_request, Server(answer % (len(document), document)) as server:
        relayed = passed_on(server, server_request, BodyStart())
    assert b"\r\naccept: application/json\r\n" in server.head
    assert (relayed.status, relayed.failure.code, relayed.failure.retry) == (503, "ScratchNeeded", Retry.ON_CHANGE)
    assert "Content-Type" not in relayed.headers


@pytest.mark.parametrize("body", [b"", b"sorry", b"[]", b"{}", b"[" * 60_000, b'{"code": 1, "message": 2, "retry": 3}'])
def test_an_answer_that_describes_no_refusal_is_passed_on_as_it_is(body):
    answer = b"HTTP/1.1 500 No\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with request(CONTENT) as server_request, Server(answer) as server:
        relayed = passed_on(server, server_request, BodyStart())
    assert (relayed.status, relayed.failure, relayed.body) == (500, None, body)


def test_an_answer_right_behind_the_sign_to_go_on_is_not_overlooked():
    known = f"HTTP/1.1 100 Continue\r\nCdi-Body-Kept: {MAX_REPLAYED}\r\n\r\n".encode()
    sign = b"HTTP/1.1 102 Processing\r\n\r\n"
    with request(CONTENT) as server_request, Server(known, MAX_REPLAYED, sign + OK) as server:
        assert passed_on(server, server_request, BodyStart()).status == 200
    assert server.heard == CONTENT[:MAX_REPLAYED]
