"""Tests of rejected certificates, and of proxies."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from cdi.api import errors
from cdi.api.job import HttpSourceSpec, Proxy, Tls
from cdi.source.http import HttpSource, open_http
from tests.faults.proxy import ForwardProxy
from tests.faults.server import Fault, FaultServer

DATA = random.Random(4).randbytes(200_000)


def source_of(url: str, **attributes: object) -> HttpSource:
    return open_http(HttpSourceSpec(url=url, **attributes), 10.0)


def read(source: HttpSource, offset: int = 0, length: int | None = None) -> bytes:
    reader = source.open(offset, length)
    data = bytearray()
    view = memoryview(bytearray(30_000))
    try:
        while count := reader.readinto(view):
            data += view[:count]
    finally:
        reader.close()
    return bytes(data)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA(organization_name="Images Ltd")


@pytest.fixture(scope="module")
def trusted(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Tls:
    directory = tmp_path_factory.mktemp("ca")
    ca.cert_pem.write_to_path(str(directory / "service-ca.crt"))
    return Tls(ca_dir=str(directory))


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture
def tls_server(ca: trustme.CA) -> Iterator[FaultServer]:
    with FaultServer(tls=serving(ca.issue_cert("127.0.0.1", "localhost"))) as server:
        yield server


def test_tls_content_is_whole_in_any_framing(tls_server: FaultServer, trusted: Tls) -> None:
    for framing in ("length", "chunked"):
        url = tls_server.put("/x", DATA, always=Fault(framing=framing))
        with source_of(url, tls=trusted) as source:
            assert read(source) == DATA
            assert read(source, 70_000, 5) == DATA[70_000:70_005]


def test_an_end_without_a_length_must_be_signed(tls_server: FaultServer, trusted: Tls) -> None:
    # The server closes TCP without TLS's closing alert, which an attacker on the path could have done.
    url = tls_server.put("/x", DATA, ranges=False, always=Fault(framing="close"))
    with source_of(url, tls=trusted) as source, pytest.raises(errors.SourceTruncated, match="close_notify"):
        read(source)


def test_a_stall_and_an_interruption_work_over_tls(tls_server: FaultServer, trusted: Tls) -> None:
    url = tls_server.put("/x", DATA, faults=[Fault()], always=Fault(stall_after=40_000))
    with open_http(HttpSourceSpec(url=url, tls=trusted), 0.3) as source:
        reader = source.open()
        view = memoryview(bytearray(len(DATA)))
        got = 0
        with pytest.raises(errors.SourceStalled):
            while True:
                got += reader.readinto(view[got:])
        assert view[:got] == DATA[:40_000]
        reader.close()


def test_a_wrong_name_is_told_with_the_right_ones(ca: trustme.CA, trusted: Tls) -> None:
    with FaultServer(tls=serving(ca.issue_cert("images.example.com"))) as server:
        with source_of(server.put("/x", DATA), tls=trusted) as source:
            with pytest.raises(
                errors.SourceTlsUntrusted, match=r"is issued for another.*images\.example\.com"
            ) as caught:
                source.probe()
    assert "host name" in caught.value.remedy


def test_an_expired_certificate_is_told(ca: trustme.CA, trusted: Tls) -> None:
    past = datetime(2020, 5, 1, tzinfo=UTC)
    expired = ca.issue_cert("127.0.0.1", not_before=past, not_after=past)
    with FaultServer(tls=serving(expired)) as server, source_of(server.put("/x", DATA), tls=trusted) as source:
        with pytest.raises(errors.SourceTlsUntrusted, match="has expired.*2020-05-01"):
            source.probe()


def test_an_unknown_authority_is_named(tls_server: FaultServer) -> None:
    with source_of(tls_server.put("/x", DATA)) as source:
        with pytest.raises(errors.SourceTlsUntrusted, match=r"authority.*issuer.*Images Ltd") as caught:
            source.probe()
    assert "certConfigMap" in caught.value.remedy


def test_a_server_certificate_itself_may_be_pinned(ca: trustme.CA, tmp_path: Path) -> None:
    leaf = ca.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "pin"))
    with FaultServer(tls=serving(leaf)) as server:
        with source_of(server.put("/x", DATA), tls=Tls(ca_dir=str(tmp_path))) as source:
            assert source.probe().length == len(DATA)


def test_tls_towards_a_plain_server_is_told(fault_server: FaultServer) -> None:
    fault_server.put("/x", DATA)
    url = fault_server.url("/x").replace("http:", "https:")
    with source_of(url) as source, pytest.raises(errors.SourceUnreachable, match="TLS"):
        source.probe()


def test_a_redirect_may_not_fall_back_to_plain_http(
    tls_server: FaultServer, fault_server: FaultServer, trusted: Tls
) -> None:
    target = fault_server.put("/y", DATA)
    url = tls_server.put("/x", always=Fault(status=302, location=target))
    with source_of(url, tls=trusted) as source, pytest.raises(errors.SourceProtocolError, match="https to plain"):
        source.probe()
    assert not fault_server.requests


# --- proxies ----------------------------------------------------------------------------------------------------------


def test_http_goes_through_a_proxy_in_absolute_form(fault_server: FaultServer) -> None:
    url = fault_server.put("/x", DATA)
    with ForwardProxy(authorization="Basic dTpw") as proxy:
        with source_of(f"{url}?a=b", proxy=Proxy(http=proxy.url.replace("//", "//u:p@"))) as source:
            assert read(source) == DATA
    assert proxy.requests[0] == f"GET {url}?a=b HTTP/1.1"
    assert len(proxy.requests) == 1  # the connection to the proxy is reused
    assert fault_server.requests[0].header("Host") == fault_server.origin.removeprefix("http://")


def test_https_goes_through_a_tunnel(tls_server: FaultServer, trusted: Tls) -> None:
    url = tls_server.put("/x", DATA)
    with ForwardProxy(authorization="Basic dTpw") as proxy:
        settings = Proxy(https=f"u:p@127.0.0.1:{proxy.port}")
        with source_of(url.replace("//", "//me:secret@"), tls=trusted, proxy=settings) as source:
            assert read(source) == DATA
    assert proxy.requests == [f"CONNECT 127.0.0.1:{tls_server.port} HTTP/1.1"]
    assert "Authorization: Basic bWU6c2VjcmV0" not in proxy.headers[0]
    assert tls_server.requests[0].header("Proxy-Authorization") is None


@pytest.fixture
def proxy_ca() -> trustme.CA:
    return trustme.CA(organization_name="Proxies Ltd")


@pytest.fixture
def both(ca: trustme.CA, proxy_ca: trustme.CA, tmp_path: Path) -> Tls:
    """Trust the source's CA and the proxy's, as a ConfigMap each in one directory."""
    ca.cert_pem.write_to_path(str(tmp_path / "service-ca.crt"))
    proxy_ca.cert_pem.write_to_path(str(tmp_path / "proxy-ca.crt"))
    return Tls(ca_dir=str(tmp_path))


def test_https_goes_through_a_proxy_that_is_reached_over_tls(
    tls_server: FaultServer, proxy_ca: trustme.CA, both: Tls
) -> None:
    large = random.Random(5).randbytes(8 << 20)
    url = tls_server.put("/x", large)
    with ForwardProxy(authorization="Basic dTpw", tls=serving(proxy_ca.issue_cert("127.0.0.1"))) as proxy:
        settings = Proxy(https=proxy.url.replace("//", "//u:p@"))
        with source_of(url, tls=both, proxy=settings) as source:
            assert read(source) == large
            assert read(source, 1_000_000, 70_000) == large[1_000_000:1_070_000]
        assert set(proxy.requests) == {f"CONNECT 127.0.0.1:{tls_server.port} HTTP/1.1"}
    for thread in threading.enumerate():
        if thread.name == "tls-relay":
            thread.join(60)
            assert not thread.is_alive()


def test_http_goes_through_a_proxy_that_is_reached_over_tls(
    fault_server: FaultServer, proxy_ca: trustme.CA, both: Tls
) -> None:
    with ForwardProxy(tls=serving(proxy_ca.issue_cert("127.0.0.1"))) as proxy:
        with source_of(fault_server.put("/x", DATA), tls=both, proxy=Proxy(http=proxy.url)) as source:
            assert read(source) == DATA


def test_a_source_behind_a_proxy_over_tls_needs_its_own_authority(
    tls_server: FaultServer, proxy_ca: trustme.CA, tmp_path: Path
) -> None:
    proxy_ca.cert_pem.write_to_path(str(tmp_path / "proxy-ca.crt"))
    with ForwardProxy(tls=serving(proxy_ca.issue_cert("127.0.0.1"))) as proxy:
        settings = Proxy(https=proxy.url)
        with source_of(tls_server.put("/x", DATA), tls=Tls(ca_dir=str(tmp_path)), proxy=settings) as source:
            with pytest.raises(errors.SourceTlsUntrusted, match="Images Ltd") as untrusted:
                source.probe()
    assert untrusted.value.upstream.endswith("x509: certificate signed by unknown authority")


def test_a_proxy_over_tls_that_is_not_trusted_is_told(
    tls_server: FaultServer, trusted: Tls, proxy_ca: trustme.CA
) -> None:
    with ForwardProxy(tls=serving(proxy_ca.issue_cert("127.0.0.1"))) as proxy:
        with source_of(tls_server.put("/x", DATA), tls=trusted, proxy=Proxy(https=proxy.url)) as source:
            with pytest.raises(errors.SourceTlsUntrusted, match="Proxies Ltd"):
                source.probe()
    assert not proxy.requests


def test_a_stalled_source_behind_a_proxy_over_tls_can_be_closed(
    tls_server: FaultServer, proxy_ca: trustme.CA, both: Tls
) -> None:
    url = tls_server.put("/x", DATA, faults=[Fault()], always=Fault(stall_after=1000))
    with ForwardProxy(tls=serving(proxy_ca.issue_cert("127.0.0.1"))) as proxy:
        source = source_of(url, tls=both, proxy=Proxy(https=proxy.url))
        reader = source.open()

        def close() -> None:
            while len(tls_server.requests) < 2:
                time.sleep(0.01)
            source.close()

        closing = threading.Thread(target=close)
        closing.start()
        with pytest.raises(errors.Interrupted):
            while reader.readinto(memoryview(bytearray(30_000))):
                pass
        closing.join(60)
        reader.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_without_its_password_is_told(
    tls_server: FaultServer, fault_server: FaultServer, trusted: Tls, scheme: str
) -> None:
    server = tls_server if scheme == "https" else fault_server
    with ForwardProxy(authorization="Basic dTpw") as proxy:
        settings = Proxy(http=proxy.url, https=proxy.url)
        with source_of(server.put("/x", DATA), tls=trusted, proxy=settings) as source:
            with pytest.raises(errors.SourceUnauthorized, match="proxy"):
                source.probe()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, errors.SourceForbidden),
        (502, errors.SourceUnavailable),
        (503, errors.SourceUnavailable),
        (405, errors.SourceRefused),
    ],
)
def test_a_tunnel_that_is_refused_is_told(status: int, error: type[errors.CdiError]) -> None:
    with ForwardProxy(status=status) as proxy:
        with source_of("https://images.example.com/x", proxy=Proxy(https=proxy.url)) as source:
            with pytest.raises(error, match="proxy"):
                source.probe()


def test_a_proxy_cannot_speak_first_in_a_tunnel(tls_server: FaultServer, trusted: Tls) -> None:
    with ForwardProxy(greeting=b"hello") as proxy:
        with source_of(tls_server.put("/x", DATA), tls=trusted, proxy=Proxy(https=proxy.url)) as source:
            with pytest.raises((errors.SourceProtocolError, errors.SourceUnreachable)):
                source.probe()


def test_a_certificate_behind_a_proxy_is_described_too(tls_server: FaultServer) -> None:
    with ForwardProxy() as proxy:
        with source_of(tls_server.put("/x", DATA), proxy=Proxy(https=proxy.url)) as source:
            with pytest.raises(errors.SourceTlsUntrusted, match="Images Ltd"):
                source.probe()
    assert len(proxy.requests) == 2


def test_a_proxy_that_is_not_there_is_told(fault_server: FaultServer) -> None:
    with ForwardProxy() as proxy:
        pass
    with source_of(fault_server.put("/x", DATA), proxy=Proxy(http=proxy.url)) as source:
        with pytest.raises(errors.SourceUnreachable, match="proxy") as caught:
            source.probe()
    assert "proxy settings" in caught.value.remedy
    with source_of(fault_server.url("/x"), proxy=Proxy(http=proxy.url, no_proxy="127.0.0.0/8")) as source:
        assert read(source) == DATA


def test_the_environment_counts_where_the_job_is_silent(
    monkeypatch: pytest.MonkeyPatch, fault_server: FaultServer
) -> None:
    url = fault_server.put("/x", DATA)
    with ForwardProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with source_of("http://images.example.com:1/x") as source, pytest.raises(errors.SourceUnavailable):
            source.probe()
        with source_of(url) as source:  # loopback, and the job does not name a proxy
            assert read(source, 0, 5) == DATA[:5]
        assert proxy.requests == ["GET http://images.example.com:1/x HTTP/1.1"]
