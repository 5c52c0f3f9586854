"""Tests of the errors for unsuccessful responses, and of their remedies."""

from __future__ import annotations

import random

import pytest

from cdi.api import errors
from cdi.api.job import Credentials, HttpSourceSpec, Proxy
from cdi.source.http import HttpSource, open_http
from tests.faults.proxy import ForwardProxy
from tests.faults.server import Fault, FaultServer

DATA = random.Random(3).randbytes(100_000)


def source_of(url: str, **attributes: object) -> HttpSource:
    return open_http(HttpSourceSpec(url=url, **attributes), 10.0)


def refusal(url: str, **attributes: object) -> errors.CdiError:
    with source_of(url, **attributes) as source, pytest.raises(errors.CdiError) as caught:
        source.probe()
    return caught.value


def read(source: HttpSource, offset: int = 0, length: int | None = None) -> bytes:
    data, view, reader = bytearray(), memoryview(bytearray(64 << 10)), source.open(offset, length)
    while count := reader.readinto(view):
        data += view[:count]
    reader.close()
    return bytes(data)


# --- success ----------------------------------------------------------------------------------------------------------


def test_content_that_a_proxy_transformed_is_a_success(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, always=Fault(status=203, body=DATA))
    with source_of(url) as source:
        assert (source.probe().length, source.probe().ranges) == (len(DATA), False)
        assert read(source) == DATA
        assert read(source) == DATA


def test_a_transformed_answer_to_a_later_range_is_the_whole_content(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA, faults=[Fault()], always=Fault(status=203, body=DATA))
    with source_of(url) as source:
        assert source.probe().ranges
        assert read(source, 0, 1000) == DATA[:1000]


# --- credentials ------------------------------------------------------------------------------------------------------


@pytest.fixture
def credentials(tmp_path) -> Credentials:
    user, password = tmp_path / "user", tmp_path / "password"
    user.write_text("u")
    password.write_text("hunter2")
    return Credentials(access_key_file=str(user), secret_key_file=str(password))


@pytest.mark.parametrize("offer", ["", 'Basic realm="x"', 'Digest realm="x", nonce="y", Basic realm="x"'])
def test_a_server_that_wants_credentials_says_how_to_give_them(fault_server: FaultServer, offer: str) -> None:
    headers = (("WWW-Authenticate", offer),) if offer else ()
    error = refusal(fault_server.put("/x", DATA, always=Fault(status=401, headers=headers, body=b"who are you?")))
    assert isinstance(error, errors.SourceUnauthorized)
    assert error.what == "the server requires credentials (401): who are you?"
    assert "secretRef" in error.remedy and "--username" in error.remedy


def test_credentials_that_a_server_refuses_are_called_so(fault_server: FaultServer, credentials: Credentials) -> None:
    url = fault_server.put("/x", DATA, always=Fault(status=401, headers=(("WWW-Authenticate", "Basic realm=x"),)))
    error = refusal(url, credentials=credentials)
    assert error.what == "the server rejected the credentials (401)"
    assert "secretRef" in error.remedy


@pytest.mark.parametrize(
    ("offers", "named"),
    [
        (("Digest realm=x, nonce=y",), "Digest"),
        (("Negotiate", "NTLM"), "Negotiate, NTLM"),
        (("Negotiate oYGeMIGb=, Digest qop=auth",), "Negotiate, Digest"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_schemes_that_are_not_spoken_are_named(
    fault_server: FaultServer, credentials: Credentials, offers: tuple[str, ...], named: str, given: bool
) -> None:
    head = "".join(f"WWW-Authenticate: {offer}\r\n" for offer in offers)
    raw = f"HTTP/1.1 401 No\r\n{head}Content-Length: 0\r\n\r\n".encode()
    url = fault_server.put("/x", DATA, always=Fault(raw=raw))
    error = refusal(url, credentials=credentials) if given else refusal(url)
    assert f"offers only {named}; this importer sends Basic and Bearer" in error.what
    assert ("other credentials" in error.what) is given
    assert "hunter2" not in str(error)


def test_a_bearer_token_that_is_wanted_can_be_given_as_a_secret_header(fault_server: FaultServer) -> None:
    offer = (("WWW-Authenticate", 'Bearer realm="https://login.example/"'),)
    error = refusal(fault_server.put("/x", DATA, always=Fault(status=401, headers=offer)))
    assert error.what == "the server requires credentials (401), and offers only Bearer"
    assert "secretExtraHeaders" in error.remedy


def test_hostile_schemes_are_cut(fault_server: FaultServer) -> None:
    offer = (("WWW-Authenticate", ", ".join(f"{chr(97 + number % 26) * 100}{number}" for number in range(30))),)
    error = refusal(fault_server.put("/x", DATA, always=Fault(status=401, headers=offer)))
    assert len(error.what) < 300


def test_a_proxy_that_does_not_offer_basic_says_what_it_offers(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA)
    with ForwardProxy(authorization="Negotiate x", offers="Negotiate, NTLM") as proxy:
        plain = refusal(url, proxy=Proxy(http=proxy.url))
        tunnel = refusal("https://images.example/x", proxy=Proxy(https=proxy.url))
    for error in (plain, tunnel):
        assert isinstance(error, errors.SourceUnauthorized)
        assert "offers only Negotiate, NTLM" in error.what


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cookies", [True, False])
def test_a_redirect_loop_that_sets_cookies_is_called_so(fault_server: FaultServer, cookies: bool) -> None:
    headers = (("Set-Cookie", "session=hunter2; Path=/"),) if cookies else ()
    url = fault_server.put("/x", DATA, always=Fault(status=302, location="/x", headers=headers))
    error = refusal(url)
    assert isinstance(error, errors.SourceTooManyRedirects)
    assert ("cookies" in error.what) is cookies
    assert ("Cookie: NAME=VALUE" in error.remedy) is cookies
    assert "hunter2" not in str(error)


# --- excerpts of the body ---------------------------------------------------------------------------------------------

XML = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message><X>1</X></Error>"


@pytest.mark.parametrize("status", [403, 400, 418, 503])
@pytest.mark.parametrize("kind", [None, "application/xml", "text/xml"])
def test_the_sentence_of_an_error_document_is_shown(fault_server: FaultServer, status: int, kind: str | None) -> None:
    typed = Fault(status=status, body=XML, headers=() if kind is None else (("Content-Type", kind),))
    untyped = Fault(status=status, body=XML, without=("Content-Type",))
    error = refusal(fault_server.put("/x", DATA, always=untyped if kind is None else typed))
    assert error.what.endswith(f"({status}): AccessDenied: Request has expired")


def test_plain_text_is_shown_bounded_and_without_control_characters(fault_server: FaultServer) -> None:
    body = "no\x1b[2J\u202entry\r\n\tfor you ".encode() + b"x" * 5000
    for fault in (Fault(status=403, body=body), Fault(status=403, body=body, without=("Content-Type",))):
        error = refusal(fault_server.put("/x", DATA, always=fault))
        assert error.what.startswith("the server denied access (403): no [2J ntry for you x")
        assert error.what.isprintable()
        assert len(error.what) < 300


@pytest.mark.parametrize("body", [b"\x89PNG\r\n", b"\xff" * 50, b"a\0b", b""])
def test_what_is_no_text_is_not_shown(fault_server: FaultServer, body: bytes) -> None:
    error = refusal(fault_server.put("/x", DATA, always=Fault(status=403, body=body, without=("Content-Type",))))
    assert error.what == "the server denied access (403)"


# --- limits of a head -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        (b"X: y\r\n" * 101, "more than 100 header fields"),
        (b"X: " + b"y" * 70_000 + b"\r\n", "more than 65536 bytes"),
        (b"X: " + b"y" * 60_000 + b"\r\nX: " + b"y" * 60_000 + b"\r\nX: " + b"y" * 60_000, "exceeds 131072 bytes"),
    ],
    ids=["fields", "field", "head"],
)
def test_a_limit_of_a_head_is_named(fault_server: FaultServer, fields: bytes, limit: str) -> None:
    url = fault_server.put("/x", always=Fault(raw=b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n"))
    error = refusal(url)
    assert isinstance(error, errors.SourceProtocolError)
    assert limit in error.what


def test_a_hundred_header_fields_are_read(fault_server: FaultServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + b"X: y\r\n" * 99
    with source_of(fault_server.put("/x", always=Fault(raw=head + b"\r\nhello"))) as source:
        assert read(source) == b"hello"
