"""Tests of the worker's HTTPS server, and of the resources that a client can occupy."""

import contextlib
import socket
import ssl
import threading

import pytest

from cdi.http.server import listener as listener_module
from cdi.worker import status_server as module
from cdi.worker.self_signed import server_context
from cdi.worker.status_server import Response, serve_status

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture(scope="module")
def context():
    return server_context("worker-1")


@pytest.fixture
def server(context):
    def broken():
        raise OSError("nothing to say")

    answers = {"/a": lambda: Response(content_type="text/plain", body=b"hello"), "/broken": broken}
    server = serve_status(0, context, answers)
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
    first, *fields = head.splitlines()
    assert first == b"HTTP/1.1 200 OK"
    assert sorted(fields) == [
        b"Cache-Control: no-store",
        b"Connection: close",
        b"Content-Length: 5",
        b"Content-Type: text/plain",
    ]
    assert body == b"hello"


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /b HTTP/1.1", 404),
        (b"GET /a/../a HTTP/1.1", 404),
        (b"GET /\xff HTTP/1.1", 400),
        (b"POST /a HTTP/1.1", 405),
        (b"HEAD /a HTTP/1.0", 405),
        (b"GET /a", 400),
        (b"GET /a HTTP/2.0", 400),
        (b"GET  /a HTTP/1.1", 400),
        (b"\0" * 100, 400),
    ],
)
def test_anything_else_is_refused(server, request_line, status):
    assert told(server, request_line + b"\r\nHost: h\r\n\r\n").startswith(b"HTTP/1.1 %d " % status)


def test_a_request_in_pieces_is_heard(server):
    with connected(server) as tls:
        for piece in (b"GET /a HT", b"TP/1.1\r\n", b"Host: h\r\n", b"\r", b"\n"):
            tls.sendall(piece)
        assert tls.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_request_without_end_is_refused(server):
    assert told(server, b"GET /a HTTP/1.1\r\n" + b"X: y\r\n" * 3000).startswith(b"HTTP/1.1 431 ")


def test_a_client_that_sends_no_request_is_disconnected(context, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 0.2)
    server = serve_status(0, context, {})
    for words in (b"", b"GET /a HTTP/1.1\r\n"):
        # On a busy machine the time is over during the handshake.
        with contextlib.suppress(ConnectionError, ssl.SSLError), connected(server) as tls:
            tls.sendall(words)
            assert tls.recv(1) == b""
    # A client that does not speak TLS is disconnected as well.
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain:
        assert plain.recv(100) == b""
    server.close()


def test_an_answer_that_cannot_be_made_harms_nobody(server):
    with contextlib.suppress(OSError):
        assert told(server, b"GET /broken HTTP/1.1\r\nHost: h\r\n\r\n") == b""
    assert told(server, GET).endswith(b"hello")


def test_clients_that_send_nothing_do_not_keep_others_away(context, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 600.0)
    server = serve_status(0, context, {"/a": lambda: Response(content_type="text/plain", body=b"hello")})
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connected(server)) for _ in range(module.MAX_CLIENTS)]
        assert told(server, GET).endswith(b"hello")
        with contextlib.suppress(ConnectionError):
            assert waiting[0].recv(1) == b""
        waiting[-1].sendall(GET)
        assert waiting[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
    server.close()


def test_after_its_end_nobody_is_heard(context):
    server = serve_status(0, context, {})
    port = server.port
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    assert not any(thread.name == "reception" for thread in threading.enumerate())


def test_closing_does_not_wait_for_a_client_that_keeps_its_connection(context, monkeypatch):
    monkeypatch.setattr(listener_module, "_DRAIN_TIMEOUT", 3600)
    server = serve_status(0, context, {"/known": lambda: Response(content_type="text/plain", body=b"x")})
    monkeypatch.setattr(server._farewells, "_quiet", 3600)
    with connected(server) as tls:
        tls.sendall(b"GET /known HTTP/1.1\r\nHost: x\r\n\r\n")
        while tls.recv(1000):
            pass
        closing = threading.Thread(target=server.close, daemon=True)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()


def test_a_port_that_is_taken_is_told(context):
    with socket.create_server(("", 0)) as taken, pytest.raises(OSError):
        serve_status(taken.getsockname()[1], context, {})


def test_the_certificate_is_for_the_worker_alone(server):
    from cryptography import x509

    with connected(server) as tls:
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    assert certificate.subject == certificate.issuer
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["worker-1"]
