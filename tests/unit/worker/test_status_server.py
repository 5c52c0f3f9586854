"""Tests of the worker's HTTPS server, and of the resources that a client can occupy."""

import contextlib
import socket
import ssl
import threading

import pytest

from cdi.worker import status_server as module
from cdi.worker.self_signed import server_context
from cdi.worker.status_server import Response, Server


@pytest.fixture(scope="module")
def context():
    return server_context("worker-1")


@pytest.fixture
def server(context):
    def broken():
        raise OSError("nothing to say")

    answers = {"/a": lambda: Response(content_type="text/plain", body=b"hello"), "/broken": broken}
    server = Server(0, context, answers)
    yield server
    server.close()


def client():
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextlib.contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain, client().wrap_socket(plain) as tls:
        yield tls


def told(server, request):
    with connected(server) as tls:
        tls.sendall(request)
        answer = b""
        while piece := tls.recv(4096):
            answer += piece
    return answer


def test_a_known_path_is_answered(server):
    head, _, body = told(server, b"GET /a?x=1 HTTP/1.1\r\nHost: h\r\n\r\n").partition(b"\r\n\r\n")
    assert head.splitlines() == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/plain",
        b"Content-Length: 5",
        b"Cache-Control: no-store",
        b"Connection: close",
    ]
    assert body == b"hello"


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /b HTTP/1.1", 404),
        (b"GET /a/../a HTTP/1.1", 404),
        (b"GET /\xff HTTP/1.1", 404),
        (b"POST /a HTTP/1.1", 405),
        (b"HEAD /a HTTP/1.0", 405),
        (b"GET /a", 400),
        (b"GET /a HTTP/2.0", 400),
        (b"GET  /a HTTP/1.1", 400),
        (b"", 400),
        (b"\0" * 100, 400),
    ],
)
def test_anything_else_is_refused(server, request_line, status):
    assert told(server, request_line + b"\r\n\r\n").startswith(b"HTTP/1.1 %d " % status)


def test_a_request_in_pieces_is_heard(server):
    with connected(server) as tls:
        for piece in (b"GET /a HT", b"TP/1.1\r\n", b"\r", b"\n"):
            tls.sendall(piece)
        assert tls.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_request_without_end_is_hung_up_on(server, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_DEADLINE", 60.0)  # longer than this client's timeout
    with connected(server) as tls, contextlib.suppress(ConnectionError):
        tls.sendall(b"GET /a HTTP/1.1\r\n" + b"X: y\r\n" * 3000)
        assert tls.recv(1) == b""


def test_a_client_that_is_not_heard_of_is_hung_up_on(server, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_DEADLINE", 0.2)
    for words in (b"", b"GET /a HTTP/1.1\r\n"):
        # On a busy machine the time is over during the handshake.
        with contextlib.suppress(ConnectionError, ssl.SSLError), connected(server) as tls:
            tls.sendall(words)
            assert tls.recv(1) == b""
    # A client that does not speak TLS is disconnected as well.
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain:
        assert plain.recv(100) == b""
    monkeypatch.setattr(module, "REQUEST_DEADLINE", 60.0)
    assert told(server, b"GET /a HTTP/1.1\r\n\r\n").endswith(b"hello")


def test_an_answer_that_cannot_be_made_harms_nobody(server):
    with contextlib.suppress(OSError):
        assert told(server, b"GET /broken HTTP/1.1\r\n\r\n") == b""
    assert told(server, b"GET /a HTTP/1.1\r\n\r\n").endswith(b"hello")


def test_so_many_clients_at_a_time(server, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_DEADLINE", 60.0)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connected(server)) for _ in range(module.MAX_CLIENTS)]
        # The handshakes are done, so every slot is taken.
        with pytest.raises(OSError), connected(server):
            pass
        waiting[0].sendall(b"GET /a HTTP/1.1\r\n\r\n")
        assert waiting[0].recv(4096).endswith(b"hello")
        while waiting[0].recv(4096):
            pass
        for _ in range(100):  # the slot is released shortly after the client's connection is closed
            with contextlib.suppress(OSError):
                assert told(server, b"GET /a HTTP/1.1\r\n\r\n").endswith(b"hello")
                break
        else:
            pytest.fail("no place became free")


def test_after_its_end_nobody_is_heard(context):
    server = Server(0, context, {})
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=10)
    assert not any(thread.name == "serve" for thread in threading.enumerate())


def test_a_port_that_is_taken_is_told(context):
    with socket.create_server(("", 0)) as taken, pytest.raises(OSError):
        Server(taken.getsockname()[1], context, {})


def test_the_certificate_is_for_the_worker_alone(server):
    from cryptography import x509

    with connected(server) as tls:
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    assert certificate.subject == certificate.issuer
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["worker-1"]
