import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import UploadMalformed
from cdi.http.server.request_head import RequestHead, parse, split


def head(*lines: str) -> RequestHead:
    return parse(("\r\n".join(lines) + "\r\n\r\n").encode())


def test_a_request():
    found = head(
        "POST /a%20b?x=1 HTTP/1.1", "Host: h", "Content-Length: 12", "Accept: a", "ACCEPT:  b ", "Expect: 100-continue"
    )
    assert (found.method, found.path, found.query, found.length) == ("POST", "/a%20b", "x=1", 12)
    assert found.headers["accept"] == "a, b"
    assert found.keep_alive
    assert found.expect_continue


def test_its_body_and_its_end():
    assert head("GET / HTTP/1.1", "Host: h").length == 0
    assert head("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked").length is None
    assert not head("GET / HTTP/1.0").keep_alive
    assert not head("GET / HTTP/1.1", "Host: h", "Connection: keep-alive, Close").keep_alive
    assert head("GET https://h:1/x HTTP/1.1", "Host: h").path == "/x"
    assert head("GET https://h HTTP/1.1", "Host: h").path == "/"
    assert head("OPTIONS * HTTP/1.1", "Host: h").path == "*"


@pytest.mark.parametrize(
    "lines",
    [
        ["GET  / HTTP/1.1", "Host: h"], ["get / HTTP/1.1", "Host: h"], ["GET / HTTP/1.1"], ["GET /\x7f HTTP/1.1", "Host: h"],
        ["GET x HTTP/1.1", "Host: h"], ["GET * HTTP/1.1", "Host: h"], ["GET / HTTP/1.1", "Host : h"],
        ["GET / HTTP/1.1", "Host: h", " folded"], ["GET / HTTP/1.1", "Host: h", "X: a\rb"], ["GET / HTTP/1.1", "Host: h", "X: a\nY: b"],
        ["POST / HTTP/1.1", "Host: h", "Content-Length: 1", "Content-Length: 1"],
        ["POST / HTTP/1.1", "Host: h", "Content-Length: +1"], ["POST / HTTP/1.1", "Host: h", "Content-Length: 1, 1"],
        ["POST / HTTP/1.1", "Host: h", "Content-Length: 1", "Transfer-Encoding: chunked"],
        ["POST / HTTP/1.0", "Transfer-Encoding: chunked"], ["POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked, chunked"],
        ["POST / HTTP/1.1", "Host: h", "Authorization: a", "Authorization: b"],
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_refused(lines):
    with pytest.raises(UploadMalformed):
        head(*lines)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data):
    try:
        parse(b"GET / HTTP/1.1\r\nHost: h\r\n" + data + b"\r\n\r\n")
    except UploadMalformed:
        pass


def test_blanks_are_not_tried_in_every_way():
    """One thread parses the heads of all clients, so backtracking for an hour here would block all of them."""
    with pytest.raises(UploadMalformed):
        head("GET / HTTP/1.1", "Host: h", "X:" + " " * 15_000 + "\n")


def test_a_field_that_comes_twice_and_says_nothing():
    found = head("GET / HTTP/1.1", "Host: h", "Accept: a", "Accept:", "Accept:  b", "X:", "X:")
    assert (found.headers["accept"], found.headers["x"]) == ("a, b", "")


GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", None), (b"\r", None), (b"\r\n", None), (b"\r\n\r\n", None), (GET[:-1], None), (b"\r\n" + GET[:-1], None),
        (GET, (GET, b"")), (GET + b"body", (GET, b"body")), (GET + GET, (GET, GET)),
        # One empty line before a request is ignored.
        (b"\r\n" + GET, (GET, b"")), (b"\r\n" + GET + b"\r\n" + GET, (GET, b"\r\n" + GET)),
        # Further empty lines, and lines that end without CR, are not.
        (b"\r\n\r\n" + GET, (b"\r\n" + GET, b"")), (b"\n" + GET, (b"\n" + GET, b"")),
    ],
)  # fmt: skip
def test_where_a_head_begins_and_ends(data, parts):
    assert split(data) == parts
    assert split(bytearray(data)) == parts


@pytest.mark.parametrize("before", [b"\r\n", b"\n", b"\r"])
def test_more_than_one_empty_line_is_refused(before):
    with pytest.raises(UploadMalformed):
        parse(before + GET)
