from __future__ import annotations

import pytest

from cdi.api.errors import SourceUrlInvalid
from cdi.api.job import Proxy
from cdi.http.proxy import ProxySettings, matches_no_proxy
from cdi.http.url import Url


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "expected"),
    [
        ("", "a.b", 80, False),
        ("*", "a.b", 80, True),
        ("x, *", "a.b", 80, True),
        ("example.com", "example.com", 80, True),
        ("example.com", "a.example.com", 80, True),
        ("example.com", "notexample.com", 80, False),
        ("EXAMPLE.com.", "a.Example.COM.", 80, True),
        (".example.com", "a.example.com", 80, True),
        (".example.com", "example.com", 80, False),
        ("*.example.com", "a.b.example.com", 80, True),
        ("*.example.com", "example.com", 80, False),
        ("example.com:8080", "example.com", 8080, True),
        ("example.com:8080", "example.com", 80, False),
        ("10.0.0.1", "10.0.0.1", 80, True),
        ("10.0.0.1", "10.0.0.10", 80, False),
        ("0.0.1", "10.0.0.1", 80, False),
        ("10.0.0.0/8", "10.9.9.9", 80, True),
        ("10.0.0.0/8", "11.0.0.1", 80, False),
        ("10.0.0.0/8", "ten.example", 80, False),
        ("10.0.0.1:90", "10.0.0.1", 80, False),
        ("fd00::/8", "fd00::5", 80, True),
        ("::1", "::1", 80, True),
        ("[::1]", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:81", "::1", 80, False),
        ("0:0:0:0:0:0:0:1", "::1", 80, True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 80, True),
        ("rubbish/8 , ,a b", "b", 80, True),
        ("localhost", "localhost", 80, True),
    ],
)
def test_no_proxy(no_proxy: str, host: str, port: int, expected: bool) -> None:
    assert matches_no_proxy(no_proxy, host, port) is expected


def choose(url: str, proxy: Proxy, **environment: str) -> str | None:
    server = ProxySettings.make(proxy, environment).for_url(Url.parse(url))
    return None if server is None else server.label


def test_the_job_wins_over_the_environment_field_by_field() -> None:
    environment = {"http_proxy": "http://env:1", "HTTPS_PROXY": "http://env:2", "NO_PROXY": "skip"}
    assert choose("http://h/", Proxy(), **environment) == "env:1"
    assert choose("https://h/", Proxy(), **environment) == "env:2"
    assert choose("http://h/", Proxy(http="job:3"), **environment) == "job:3"
    assert choose("https://h/", Proxy(http="job:3"), **environment) == "env:2"
    assert choose("http://skip/", Proxy(http="job:3"), **environment) is None
    assert choose("http://skip/", Proxy(http="job:3", no_proxy="other"), **environment) == "job:3"
    assert choose("http://h/", Proxy(), http_proxy="lower:1", HTTP_PROXY="upper:1") == "lower:1"
    assert choose("http://h/", Proxy()) is None


def test_loopback_is_spared_by_the_environment_only() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert choose(f"http://{host}/", Proxy(), http_proxy="env:1") is None
        assert choose(f"http://{host}/", Proxy(http="job:1")) == "job:1"


@pytest.mark.parametrize("text", ["socks5://p:1", "http://", "http://p:x", "http://a b:1"])
def test_a_proxy_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(SourceUrlInvalid, match="proxy"):
        ProxySettings.make(Proxy(https=text), {})


def test_credentials_are_for_the_proxy_and_for_no_message() -> None:
    server = ProxySettings.make(Proxy(http="http://u:p%40@p:3128"), {}).http
    assert server is not None
    assert server.authorization == "Basic dTpwQA=="
    assert server.label == "p:3128"
