from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import CdiError, SourceUrlInvalid
from cdi.http.url import Url


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTPS://Example.COM:443/a", "https://example.com/a"),
        ("http://example.com:8080/a?b=c#d", "http://example.com:8080/a?b=c"),
        (" http://example.com/a b/ü?q=x y ", "http://example.com/a%20b/%C3%BC?q=x%20y"),
        ("http://example.com/a%20b%2Fc", "http://example.com/a%20b%2Fc"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://[2001:DB8::1]:81/x", "http://[2001:db8::1]:81/x"),
        ("http://[fe80::1%25eth0]/x", "http://[fe80::1%eth0]/x"),
        ("http://user:pw@10.0.0.1/x", "http://10.0.0.1/x"),
        ("http://my_host.local./x", "http://my_host.local./x"),
        ("http://h?x", "http://h/?x"),
        ("http://h/a;v=1@2,3+4!$&'()*=:~", "http://h/a;v=1@2,3+4!$&'()*=:~"),
    ],
)
def test_urls_are_normalised(text: str, normal: str) -> None:
    assert Url.parse(text).text == normal


@pytest.mark.parametrize(
    "text",
    [
        "", "example.com/x", "ftp://h/x", "file:///etc/passwd", "http://", "http:///x", "http://h:0/", "http://h:x/",
        "http://h:65536/", "http://a b/", "http://a\r\nb/", "http://h/a\r\nHost: x", "http://h/\0", "http://[::1/",
        "http://[1.2.3.4]/", "http://[v1.x]/", "http://h\\x/", "http://-/", "http://" + "a" * 64 + ".example/",
        "http://h/" + "a" * 40000, "http://exa<mple/", "http://\udcff/", "http://ü" + "ü" * 80 + "/",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(SourceUrlInvalid):
        Url.parse(text)


@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text_gives_a_url_without_line_breaks_or_an_error(left: str, right: str) -> None:
    for text in (left, f"http://{left}", f"http://h/{left}?{right}", f"http://{left}@h/{right}"):
        try:
            url = Url.parse(text)
        except CdiError:
            continue
        assert url.text.isprintable()
        assert " " not in url.text
        assert Url.parse(url.text).text == url.text


@given(st.text(max_size=60))
def test_any_location_gives_a_url_or_an_error(text: str) -> None:
    base = Url.parse("https://user:pw@example.com/a/b?c")
    try:
        url = base.join(text)
    except CdiError:
        return
    assert url.user is None
    assert url.scheme in {"http", "https"}


def test_messages_hold_no_secret() -> None:
    url = Url.parse("https://me:pw@h/a/b?X-Amz-Signature=abc")
    assert url.redacted == "https://h/a/b"
    assert (url.user, url.password) == ("me", "pw")
    with pytest.raises(SourceUrlInvalid) as caught:
        Url.parse("ftp://me:hunter2@h/a?token=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "signed"),
    [
        ("X-Amz-Algorithm=a&X-Amz-Signature=b", True),
        ("AWSAccessKeyId=a&Signature=b&Expires=1", True),
        ("X-Goog-Signature=1", True),
        ("sv=2020&sig=x", True),
        ("token=x", True),
        ("access_token=x", True),
        ("download=1", False),
        ("raw", False),
        ("", False),
        ("path=a&version=3", False),
    ],
)
def test_signed_urls_have_no_neighbours(query: str, signed: bool) -> None:
    assert Url.parse(f"http://h/a?{query}").is_presigned is signed


def test_names_and_neighbours() -> None:
    url = Url.parse("http://h/a/disk%20one.qcow2?x=1")
    assert url.name == "disk one.qcow2"
    assert url.with_name("SHA256 SUMS#?").text == "http://h/a/SHA256%20SUMS%23%3F"
    assert Url.parse("http://h/").name is None
    assert Url.parse("http://h/a/..%2f%0a").name is None
