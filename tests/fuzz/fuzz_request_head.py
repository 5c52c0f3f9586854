"""Fuzz target: an ambiguous request head is rejected at once.

python tests/fuzz/fuzz_request_head.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.http.server.request_head", "cdi.api.upload_protocol"]):
    from cdi.api.errors import UploadMalformed
    from cdi.api.upload_protocol import PlainUpload, TusUpload, route
    from cdi.http.server.request_head import MAX_FIELDS, MAX_HEAD, RequestHead, parse, split

from tests.fuzz.seeds import run

END = b"\r\n\r\n"
BLANKS = 12_000


def kept(head: RequestHead) -> dict[str, str]:
    """Allow HTTP/1.0 without Host, and ignore its Expect header."""
    return {"host": "none", **{name: value for name, value in head.headers.items() if name != "expect"}}


def written(head: RequestHead) -> bytes:
    """Return the same request as the relay would write it."""
    target = head.path + (f"?{head.query}" if head.query else "")
    lines = [f"{head.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in kept(head).items())]
    return "\r\n".join(lines).encode("latin-1") + END


def target(data: bytes) -> None:
    # The listener passes everything up to the first empty line, within its limit.
    data = data.partition(END)[0][: MAX_HEAD - len(END)] + END
    # A byte 0xff represents more blanks than a fuzzer would generate.
    data = data.replace(b"\xff", b" " * BLANKS)[: MAX_HEAD - len(END)].removesuffix(END) + END
    # One empty line before the head is ignored, and the body after it is not parsed.
    if data.index(END) == len(data) - len(END) and not data.startswith(b"\r\n"):
        for before in (b"", b"\r\n"):
            assert split(before + data + b"\r\n\r\nbody") == (data, b"\r\n\r\nbody")
    try:
        head = parse(data)
    except UploadMalformed as error:
        assert error.status in (400, 417, 431, 501)
        assert error.what.isprintable()
        return
    assert head.path.isascii()
    assert head.path.isprintable()
    assert head.path == "*" or head.path.startswith("/")
    assert " " not in head.path + head.query
    assert len(head.headers) <= MAX_FIELDS
    for name, value in head.headers.items():
        assert name == name.lower()
        assert not set(name) & set(' \t\r\n:"(),/;<=>?@[\\]{}')
        assert not set(value) & set("\r\n\0")
        assert value == value.strip(" \t")
    # A length and chunks are never both believed.
    assert "transfer-encoding" not in head.headers or (head.length is None and "content-length" not in head.headers)
    assert head.length is not None or head.headers["transfer-encoding"].lower() == "chunked"
    found = route(head.path)
    assert not isinstance(found, PlainUpload) or found.path == head.path
    if isinstance(found, TusUpload):
        assert ".." not in f"{found.namespace}/{found.claim}/{found.id}"
        assert "%" not in head.path
    # What is passed on is read there as it was read here.
    again = parse(written(head))
    assert (again.method, again.path, again.query) == (head.method, head.path, head.query)
    assert (again.length, again.headers) == (head.length, kept(head))


def seeds() -> list[bytes]:
    upload = b"POST /v1beta1/upload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a.b.c\r\n"
    tus = b"PATCH /v1beta1/tus/ns/vm/" + b"0" * 32 + b"-5 HTTP/1.1\r\nHost: h\r\nTus-Resumable: 1.0.0\r\n"
    return [
        upload + b"Content-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        upload + b"Transfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n",
        upload + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        tus + b"Upload-Offset: 0\r\nUpload-Checksum: sha1 AAAA\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET https://other/v1beta1/../x?y#z HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET http:// HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\xffb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX:\xff\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    ]


if __name__ == "__main__":
    run(target, seeds(), 2048, fixed=300_000)
