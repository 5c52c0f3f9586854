"""Tests of sending an image over real connections to a misbehaving server."""

from __future__ import annotations

import http.server
import io
import threading
from dataclasses import dataclass, field

import pytest

from cdi.api.errors import (
    AlreadyUploaded,
    ImageCorrupt,
    TokenInvalid,
    UploadMalformed,
    UploadNotReady,
    UsageError,
)
from cdi.client.upload_client import Proxy, RetryPolicy, UploadClient, Volume

CONTENT = bytes(range(256)) * 40_000


@dataclass
class Server:
    """A tus server that misbehaves as configured."""

    port: int = 0
    speaks_tus: bool = True
    knows_async: bool = True
    data: bytearray = field(default_factory=bytearray)
    asked: list = field(default_factory=list)
    cut: list = field(default_factory=list)
    """For each PATCH to come, the bytes after which the connection breaks; None accepts all."""
    refusals: list = field(default_factory=list)
    """Responses for the next matching requests: (method, status, body)."""
    forgets: bool = False
    location: str = "/v1beta1/tus/ns/vm/u1"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments): ...

    def _reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def _any(self):
        server = self.server.told
        server.asked.append((self.command, self.path, self.headers.get("Upload-Offset"), self.headers["Authorization"]))
        for i, (method, status, body) in enumerate(server.refusals):
            if method == self.command:
                del server.refusals[i]
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return self._reply(status, body)
        tus = "/tus/" in self.path
        if tus and not server.speaks_tus:
            return self._reply(404)
        if tus and self.command == "POST":
            server.data.clear()
            server.forgets = False
            return self._reply(201, Location=server.location)
        if tus and server.forgets:
            return self._reply(404)
        if tus and self.command == "HEAD":
            return self._reply(200, Upload_Offset=str(len(server.data)))
        if self.command == "HEAD":
            return self._reply(200 if server.knows_async else 404)
        length = int(self.headers["Content-Length"])
        cut = server.cut.pop(0) if server.cut else None
        if not tus:
            server.data.clear()
        server.data += self.rfile.read(length if cut is None else cut)
        if cut is not None:
            self.close_connection = True
            return None
        return self._reply(204 if tus else 200, Upload_Offset=str(len(server.data)))

    do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = _any


@pytest.fixture
def server():
    told = Server()
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.told = told
    told.port = serving.server_port
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
    thread.start()
    yield told
    serving.shutdown()
    thread.join()
    serving.server_close()


class Watcher:
    def __init__(self):
        self.done, self.pauses = [], []

    def sent(self, done, total):
        assert total == len(CONTENT)
        self.done.append(done)

    def waits(self, why, seconds):
        self.pauses.append(seconds)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def watcher():
    return Watcher()


@pytest.fixture
def send(server, watcher):
    tokens = iter(f"t{i}" for i in range(1, 100))

    def call(url=None):
        clock = Clock()
        UploadClient(
            Proxy(url=url or server.url), Volume(namespace="ns", name="vm"), io.BytesIO(CONTENT), len(CONTENT),
            lambda: next(tokens), watcher, patience=RetryPolicy(sleep=clock.sleep, clock=clock),
        ).send()  # fmt: skip

    return call


def methods(server):
    return [one[0] for one in server.asked]


class TestTus:
    def test_in_one_go(self, server, send, watcher):
        send()
        assert bytes(server.data) == CONTENT
        assert methods(server) == ["POST", "PATCH"]
        assert watcher.done[-1] == len(CONTENT)
        assert watcher.pauses == []

    def test_each_break_is_gone_on_from(self, server, send):
        server.cut = [1_000_000, 5_000_000]
        send()
        assert bytes(server.data) == CONTENT
        assert [one[2] for one in server.asked if one[0] == "PATCH"] == ["0", "1000000", "6000000"]

    def test_pauses_grow_while_nothing_arrives_and_not_otherwise(self, server, send, watcher):
        server.refusals = [("POST", 503, b"busy")] * 5
        server.cut = [1000, 1000]
        send()
        assert [0.75 * 2**i <= pause / 0.5 <= 1.25 * 2**i for i, pause in enumerate(watcher.pauses[:5])] == [True] * 5
        assert watcher.pauses[-1] < 1

    def test_a_token_that_expired_is_replaced(self, server, send):
        server.cut = [4_000_000]
        server.refusals = [("HEAD", 401, b"expired")]
        send()
        assert bytes(server.data) == CONTENT
        assert server.asked[-1][3] == "Bearer t2"

    def test_one_that_never_is_good_ends_it(self, server, send):
        server.refusals = [("POST", 401, b'{"code": "TokenInvalid", "message": "no"}')] * 9
        with pytest.raises(TokenInvalid, match="no"):
            send()
        assert len(server.asked) == 2

    def test_an_upload_that_is_forgotten_begins_again(self, server, send):
        server.cut = [4_000_000]
        server.forgets = True
        server.refusals = [("HEAD", 404, b"")]
        send()
        assert bytes(server.data) == CONTENT
        assert methods(server).count("POST") == 2

    def test_a_refusal_of_the_image_keeps_its_code(self, server, send):
        server.refusals = [("PATCH", 400, b'{"code": "ImageCorrupt", "message": "broken. Try: another"}')]
        with pytest.raises(ImageCorrupt, match="broken. Try: another"):
            send()
        assert methods(server) == ["POST", "PATCH"]

    def test_a_server_that_stays_away_ends_it(self, server, send):
        server.refusals = [("POST", 503, b"not ready")] * 1000
        with pytest.raises(UploadNotReady, match="not ready"):
            send()
        assert 20 < len(server.asked) < 60

    def test_a_token_goes_to_no_other_server(self, server, send):
        server.location = "http://127.0.0.2:9/steal"
        with pytest.raises(UploadMalformed, match="another server"):
            send()

    def test_an_offset_beyond_the_end(self, server, send):
        server.cut = [10]
        server.data += b"x" * (len(CONTENT) + 1)

        class Late(bytearray):
            def clear(self): ...

        server.data = Late(server.data)
        with pytest.raises(UploadMalformed, match="more bytes"):
            send()


class TestOtherServers:
    def test_one_that_knows_no_tus_gets_it_in_one_request(self, server, send):
        server.speaks_tus = False
        send()
        assert bytes(server.data) == CONTENT
        assert server.asked[-1][:2] == ("POST", "/v1beta1/upload-async")

    def test_an_old_one(self, server, send):
        server.speaks_tus = server.knows_async = False
        send()
        assert bytes(server.data) == CONTENT
        assert server.asked[-1][:2] == ("POST", "/v1beta1/upload")

    def test_what_breaks_begins_again(self, server, send):
        server.speaks_tus = False
        server.cut = [5_000_000]
        send()
        assert bytes(server.data) == CONTENT

    def test_a_plain_refusal_is_told_as_it_was_said(self, server, send):
        server.speaks_tus = False
        server.refusals = [("POST", 404, b""), ("POST", 409, b"already uploaded\n")]
        with pytest.raises(AlreadyUploaded, match="already uploaded"):
            send()


@pytest.mark.parametrize("url", ["ftp://host", "nonsense", "https://", "http://host:port"])
def test_a_url_that_is_none(send, url):
    with pytest.raises(UsageError):
        send(url)
