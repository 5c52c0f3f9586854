from __future__ import annotations

from http.client import HTTPMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import CdiError, InvalidManifest, SourceCredentialsInvalid, SourceProtocolError
from cdi.http import headers as fields


def message(*pairs: tuple[str, str]) -> HTTPMessage:
    found = HTTPMessage()
    for name, value in pairs:
        found[name] = value
    return found


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ("X-A: b", ("X-A", "b")),
        ("X-A: b\r\n", ("X-A", "b")),
        ("X-A:b: c ", ("X-A", "b: c")),
        ("Authorization: Bearer ü", ("Authorization", "Bearer ü")),
        ("Host: other", ("Host", "other")),
        ("X-Empty:", ("X-Empty", "")),
        ("User-Agent: curl", ("User-Agent", "curl")),
    ],
)
def test_lines_are_read(line: str, pair: tuple[str, str]) -> None:
    assert fields.from_manifest([line]) == (pair,)


@pytest.mark.parametrize(
    "line",
    [
        "", "novalue", ": x", "a b: c", "X: hunter2\r\nY: z", "X: hunter2\0", "ü: hunter2",
        "Range: hunter2", "if-range: hunter2", "Accept-Encoding: hunter2", "Content-Length: hunter2",
        "Connection: hunter2", "Transfer-Encoding: hunter2",
    ],
)  # fmt: skip
def test_lines_that_could_do_harm_are_refused_without_being_quoted(line: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest) as caught:
        fields.from_manifest(["A: b", line])
    assert "header 2" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    path = tmp_path / "secret"
    path.write_text(line + "\n")
    if line.strip() and "\n" not in line.strip():
        with pytest.raises(SourceCredentialsInvalid) as refused:
            fields.from_secret_files([str(path)])
        assert str(path) in str(refused.value)
        assert "hunter2" not in str(refused.value)


def test_secret_files_hold_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("X-A: 1\r\n\n  \nX-B: 2")
    assert fields.from_secret_files([str(path)]) == (("X-A", "1"), ("X-B", "2"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"x" * 70_000])
def test_secrets_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceCredentialsInvalid) as caught:
        fields.read_secret(str(path))
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-0/1", (0, 0, 1)),
        ("BYTES 5-9/*", (5, 9, None)),
        ("bytes */7", (None, None, 7)),
        ("bytes=0-4/5", (0, 4, 5)),
        ("items 0-0/1", None),
        ("bytes 0-0", None),
        ("bytes 0-/1", None),
        ("bytes -1-0/1", None),
        ("bytes 0-0/" + "9" * 40, None),
        ("", None),
    ],
)
def test_content_range(text: str, expected: tuple[int | None, ...] | None) -> None:
    found = fields.content_range(message(("Content-Range", text)))
    assert (None if found is None else (found.start, found.end, found.total)) == expected


def test_two_content_ranges_are_none() -> None:
    assert fields.content_range(message(("Content-Range", "bytes 0-0/1"), ("Content-Range", "bytes 0-0/1"))) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a"', ('"a"', True)),
        ('W/"a"', ('"a"', False)),
        ('""', ('""', True)),
        ("a", None),
        ('"a', None),
        ('"a"b"', None),
        ('w/"a"', None),
    ],
)
def test_etags(text: str, expected: tuple[str, bool] | None) -> None:
    assert fields.etag(message(("ETag", text))) == expected


@given(st.text(st.characters(max_codepoint=255), max_size=80))
def test_nothing_that_a_server_says_raises_anything_else(text: str) -> None:
    names = ("Content-Range", "Content-Length", "Transfer-Encoding", "Content-Encoding", "ETag", "Last-Modified")
    headers = message(*((name, text) for name in (*names, "Content-Type", "Retry-After")))
    for read in (fields.content_range, fields.etag, fields.last_modified, fields.media_type):
        read(headers)
    wait = fields.retry_after(headers)
    assert wait is None or 0 <= wait <= fields.MAX_RETRY_AFTER
    for framing in (fields.content_length, fields.chunked):
        try:
            framing(headers, where="x")
        except CdiError as error:
            assert isinstance(error, SourceProtocolError)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), ()),
        (("",), ()),
        (("identity",), ()),
        (("aws-chunked",), ()),
        (("AWS-Chunked, gzip",), ("gzip",)),
        (("gzip,aws-chunked",), ("gzip",)),
        (("aws-chunked,",), ()),
        (("aws-chunked", "zstd"), ("zstd",)),
        (("deflate, gzip",), ("deflate", "gzip")),
        (("aws-chunkedx",), ("aws-chunkedx",)),
    ],
)
def test_codings_are_those_of_the_file_itself(values: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert fields.content_codings(values) == expected


def test_excerpts_are_one_clean_line() -> None:
    body = b"<html><style>x{}</style><b>No\r\n\x1b[31mway</b> \xff</html>" + b"y" * 1000
    text = fields.excerpt(body)
    assert text.startswith("No [31mway")
    assert text.isprintable()
    assert len(text) == 200
