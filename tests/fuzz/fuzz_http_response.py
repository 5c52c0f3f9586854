"""Fuzz target: a response of any server gives a bounded document or an error, in any pieces, and leaves nothing behind.

python tests/fuzz/fuzz_http_response.py -max_total_time=60
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.http.message", "cdi.http.headers", "cdi.http.connection"]):
    from cdi.api.errors import CdiError
    from cdi.http import headers as fields
    from cdi.http.connection import Connection, RemoteDisconnected
    from cdi.http.dialer import SocketCanceller
    from cdi.http.message import MAX_FIELDS, read_response
    from cdi.http.status import error_for_status
    from cdi.http.url import Url

from tests.fuzz.seeds import run

URL = Url.parse("http://h/")
METHODS = ("GET", "HEAD", "CONNECT")
LIMIT = 4096
"""More than a body of the longest input has."""


def exchange(data: bytes, method: str, size: int) -> tuple[object, ...]:
    """Return what the client makes of `data`, which it reads in pieces of at most `size` bytes of body."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours, None, stall_timeout=5, where="h")
    try:
        connection.acquire(SocketCanceller(), where="h")
        theirs.sendall(data)
        theirs.close()
        response = read_response(connection, URL, method=method)
        assert 200 <= response.status <= 999
        assert len(response.headers) <= MAX_FIELDS
        for parse in (fields.content_range, fields.etag, fields.last_modified, fields.media_type, fields.retry_after):
            parse(response.headers)
        content, view = bytearray(), memoryview(bytearray(size))
        error = error_for_status(response, b"x", sent=None, credentials_dropped=False)
        assert error.what.isprintable()
        while count := response.body.readinto(view):
            content += view[:count]
            assert len(content) <= len(data)
        assert response.body.ended
        # Only bytes that follow a complete response stay in the connection.
        rest = connection.take_buffered() if response.body.reusable else b""
        assert len(content) + len(rest) < len(data)
        return response.status, bytes(content), response.body.length
    except CdiError as error:
        assert error.message.isprintable()
        return (error.code,)
    except RemoteDisconnected:
        assert not data
        return ("disconnected",)
    finally:
        theirs.close()
        connection.close()


def target(data: bytes) -> None:
    if len(data) < 2:
        return
    method, size, data = METHODS[data[0] % len(METHODS)], 1 + data[1] % 64, data[2:]
    assert exchange(data, method, size) == exchange(data, method, LIMIT)


def seeds() -> list[bytes]:
    ok = b"HTTP/1.1 200 OK\r\n"
    found = [
        ok + b"Content-Length: 5\r\n\r\nhello",
        ok + b"Content-Length: 5, 5\r\nConnection: close\r\n\r\nhello and more",
        ok + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\n",
        ok + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=x\r\n\r\n<html>",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + ok + b"\r\n",
        b'HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-4/*\r\nETag: W/"x"\r\nContent-Length: 5\r\n\r\nhello',
        b"HTTP/1.1 429 x\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 401 x\r\nWWW-Authenticate: Basic realm="x", Negotiate\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 204 x\r\nContent-Length: 9\r\n\r\n",
        ok + b"X: y\r\n" * 101 + b"\r\n",
        b"\x16\x03\x01",
    ]
    return [bytes((method, 7)) + data for data in found for method in range(len(METHODS))]


if __name__ == "__main__":
    run(target, seeds(), 2048, fixed=40_000)
