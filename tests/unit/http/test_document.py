"""Tests of documents that are fetched whole."""

import socket
import threading

import pytest

from cdi.api.errors import Interrupted, SourceProtocolError, SourceTooManyRedirects, SourceUnreachable
from cdi.api.job import Proxy, Tls
from cdi.http.document import DocumentClient
from cdi.http.http_object import HttpRequest
from cdi.http.transport import Transport
from tests.faults.server import Fault, FaultServer

SECRET = (("Authorization", "Bearer x"),)


@pytest.fixture
def transport():
    return Transport(tls=Tls(), proxy=Proxy(), stall_timeout=5)


@pytest.fixture
def client(transport):
    client = DocumentClient(transport)
    yield client
    client.close()


class ScriptedServer:
    """A server that sends each connection the same bytes and records what it receives."""

    def __init__(self, answer):
        self.received = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.received.append(connection.recv(1 << 16))
                connection.sendall(self._answer)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def scripted():
    opened = []

    def start(answer):
        opened.append(ScriptedServer(answer))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def test_a_document_of_any_status_is_returned_with_its_body(client, fault_server):
    url = fault_server.put("/a", b"", always=Fault(status=418, body=b"{}"))
    answer = client.fetch(HttpRequest(url=url), limit=10)
    assert (answer.status, answer.body, answer.cross_origin) == (418, b"{}", False)


def test_a_document_over_the_limit_is_refused(client, fault_server):
    url = fault_server.put("/a", b"x" * 11)
    assert client.fetch(HttpRequest(url=fault_server.put("/b", b"x" * 10)), limit=10).body == b"x" * 10
    with pytest.raises(SourceProtocolError, match="exceeds 10 bytes"):
        client.fetch(HttpRequest(url=url), limit=10)


def test_a_chunked_document_without_end_is_refused(client, scripted):
    server = scripted(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100)
    with pytest.raises(SourceProtocolError, match="exceeds 50 bytes"):
        client.fetch(HttpRequest(url=server.url), limit=50)


def test_a_truncated_document_is_a_lost_connection(client, scripted):
    server = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx")
    with pytest.raises(SourceUnreachable, match="connection lost"):
        client.fetch(HttpRequest(url=server.url), limit=50)


def test_the_head_of_a_document_has_no_body(client, scripted):
    server = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDocker-Content-Digest: d\r\n\r\n")
    answer = client.fetch(HttpRequest(url=server.url), limit=50, method="HEAD")
    assert (answer.body, answer.headers["docker-content-digest"]) == (b"", "d")
    assert server.received[0].startswith(b"HEAD / HTTP/1.1\r\n")


def test_a_request_with_a_body_states_its_length_and_is_not_redirected(client, scripted):
    server = scripted(b"HTTP/1.1 307 Moved\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n")
    answer = client.fetch(HttpRequest(url=server.url), limit=50, method="POST", body=b"a=b")
    assert answer.status == 307
    assert len(server.received) == 1
    assert b"\r\nContent-Length: 3\r\n" in server.received[0]
    assert server.received[0].endswith(b"\r\n\r\na=b")


def test_redirects_are_returned_to_a_client_that_does_not_follow_them(transport, fault_server):
    client = DocumentClient(transport, follow_redirects=False)
    url = fault_server.put("/a", b"", always=Fault(status=302, location="/b"))
    assert client.fetch(HttpRequest(url=url), limit=50).status == 302
    client.close()


def test_redirects_without_end_are_refused(client, fault_server):
    url = fault_server.put("/a", b"", always=Fault(status=302, location="/a"))
    with pytest.raises(SourceTooManyRedirects):
        client.fetch(HttpRequest(url=url), limit=50)


def test_credentials_are_not_sent_after_a_redirect_returns_to_the_first_origin(client, fault_server):
    back = fault_server.put("/end", b"{}")
    with FaultServer() as other:
        url = fault_server.put("/a", b"", always=Fault(status=302, location=other.url("/b")))
        other.put("/b", b"", always=Fault(status=302, location=back))
        answer = client.fetch(HttpRequest(url=url, sensitive_headers=SECRET), limit=50)
        assert other.requests[0].header("authorization") is None
    assert answer.cross_origin
    assert fault_server.asked("/a")[0].header("authorization") == "Bearer x"
    assert fault_server.asked("/end")[0].header("authorization") is None


def test_closing_interrupts_a_request_of_another_thread(transport):
    client = DocumentClient(transport)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        def accept_and_close():
            accepted.append(listener.accept()[0])
            accepted[0].recv(1 << 16)
            client.close()

        closing = threading.Thread(target=accept_and_close)
        closing.start()
        with pytest.raises(Interrupted):
            client.fetch(HttpRequest(url=f"http://127.0.0.1:{listener.getsockname()[1]}/"), limit=10)
        closing.join()
        accepted[0].close()
    with pytest.raises(Interrupted):
        client.fetch(HttpRequest(url="http://127.0.0.1:1/"), limit=10)


def test_a_lone_carriage_return_does_not_begin_another_header_field(client, scripted):
    server = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: a\rETag: b\0c\r\n\r\nx")
    assert client.fetch(HttpRequest(url=server.url), limit=50).headers == {"content-length": "1", "x": "a ETag: b c"}
