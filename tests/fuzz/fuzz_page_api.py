"""Fuzz target: every request to the page's API gets a complete response with a fitting status.

python tests/fuzz/fuzz_page_api.py -max_total_time=60
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(
    include=["cdi.server.page", "cdi.http.server", "cdi.api.json_document", "cdi.api.quantity"]
):
    from cdi.api.errors import ClusterUnauthorized, UploadMalformed
    from cdi.api.names import is_dns_subdomain
    from cdi.http.server.plaintext import PlaintextContext
    from cdi.http.server.request import ServerRequest
    from cdi.http.server.request_head import MAX_HEAD, parse, split
    from cdi.http.server.turn import Turn
    from cdi.server.page.backend import Session
    from cdi.server.page.service import Page

from tests.fuzz.seeds import run

STATUSES = {200, 201, 304, 400, 401, 404, 413, 415, 422}
TOKEN = "good"


class Desk:
    """Check that the object is valid for an API server."""

    def authenticate(self) -> None: ...

    def session(self, namespace: str | None) -> Session:
        return Session(namespace="default", namespaces=(), may={})

    def volumes(self, namespace: str) -> list[dict[str, Any]]:
        assert is_dns_subdomain(namespace)
        return []

    def create(self, body: dict[str, Any]) -> None:
        metadata = body["metadata"]
        assert is_dns_subdomain(metadata["name"])
        assert is_dns_subdomain(metadata["namespace"])
        assert len(json.dumps(body)) < 4096

    def delete(self, namespace: str, name: str, uid: str) -> None:
        assert is_dns_subdomain(name)
        assert isinstance(uid, str)

    def upload_token(self, namespace: str, name: str) -> str:
        assert is_dns_subdomain(name)
        return "token"


class Desks:
    hint = "hint"

    def recognises(self, token: str) -> bool:
        return True

    def of(self, token: str) -> Desk:
        if token != TOKEN:
            raise ClusterUnauthorized("no")
        return Desk()


class Raised(logging.Handler):
    """Fail on a logged defect, which the server would only answer."""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record


RAISED = Raised()
logging.getLogger("cdi.server.page.service").addHandler(RAISED)
logging.getLogger("cdi.server.page.service").propagate = False
PAGE = Page(Desks())


def target(data: bytes) -> None:
    # A byte 0xff stands for a good token's line, and 0xfe for more levels than a fuzzer would come to write.
    data = data.replace(b"\xff", b"Authorization: Bearer good\r\nContent-Type: application/json\r\n")
    data = data.replace(b"\xfe", b"[" * 200)
    parts = split(data[:MAX_HEAD])
    if parts is None:
        return
    try:
        head = parse(parts[0])
    except UploadMalformed:
        return
    client, ours = socket.socketpair()
    with client, PlaintextContext().wrap_socket(ours) as sock:
        client.settimeout(10)
        # More would not fit into the buffer of a socket that is not read yet.
        client.sendall(data[MAX_HEAD:][: 64 << 10])
        client.shutdown(socket.SHUT_WR)
        RAISED.last = None  # type: ignore[assignment]
        request = ServerRequest(sock, head, parts[1], stall_timeout=10.0, where="the client")
        begun = PAGE.begin(request)
        if begun is None:
            assert not request.responded
            assert not head.path.startswith("/page/api/")
            return
        answer_of(request, begun)
        assert request.begin_close()
        got = b""
        while piece := client.recv(1 << 16):
            got += piece
    assert RAISED.last is None, RAISED.last.getMessage()
    assert request.status in STATUSES, got
    fields, _, body = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    assert f"HTTP/1.1 {request.status} ".encode() in fields
    assert b"Access-Control" not in fields
    if head.path.startswith("/page/api/") and head.method != "HEAD":
        said = json.loads(body)
        assert request.status < 400 or set(said) == {"code", "message"}


def answer_of(request: ServerRequest, begun: Turn | bool) -> None:
    if isinstance(begun, Turn):
        begun.run(request)
    request.end()
    assert request.responded
    assert request.outgoing is None


def seeds() -> list[bytes]:
    found = []
    for method, path, body in (
        ("GET", "/", ""), ("GET", "/page/js/main.js", ""), ("GET", "/page/api/about", ""), ("GET", "/page/api/session?namespace=a", ""),
        ("GET", "/page/api/volumes/team", ""), ("OPTIONS", "/page/api/volumes/team", ""), ("HEAD", "/page/api/session", ""),
        ("POST", "/page/api/volumes/team", '{"name": "a", "size": "10Gi", "storageClass": "fast", "accessMode": "RWO"}'),
        ("POST", "/page/api/volumes/team/a/clone", '{"name": "b"}'), ("POST", "/page/api/volumes/team/a/token", "{}"),
        ("DELETE", "/page/api/volumes/team/a?uid=u-1", ""), ("POST", "/page/api/volumes/%74eam", "\xfe"),
    ):  # fmt: skip
        content = body.encode("latin-1")
        length = len(content.replace(b"\xfe", b"[" * 200))
        start = f"{method} {path} HTTP/1.1\r\nHost: h\r\n".encode()
        found.append(start + b"\xff" + f"Content-Length: {length}\r\n\r\n".encode() + content)
        found.append(
            start
            + b"\xffTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
            + b"%x\r\n%s\r\n0\r\n\r\n" % (length, content)
        )
    return found


if __name__ == "__main__":
    run(target, seeds(), 4096, fixed=250_000)
