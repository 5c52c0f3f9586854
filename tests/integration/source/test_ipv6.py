"""Sources and servers on IPv6 addresses."""

import random
import socket
import ssl
from collections.abc import Iterator

import pytest
import trustme

from cdi.api.errors import UsageError
from cdi.api.job import GcsSourceSpec, HttpSourceSpec, Proxy, S3SourceSpec, Tls
from cdi.http.sockets import listen, listen_as_asked
from cdi.source.base import read_all
from cdi.source.gcs import open_gcs
from cdi.source.http import open_http
from cdi.source.registry.open import open_registry
from cdi.source.s3 import open_s3
from cdi.worker.self_signed import server_context
from cdi.worker.status_server import serve_status
from tests.faults.proxy import ForwardProxy
from tests.faults.server import FaultServer
from tests.integration.source.test_registry_responses import LAYER, Registry

DATA = random.Random(6).randbytes(100_000)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> tuple[ssl.SSLContext, Tls]:
    directory = tmp_path_factory.mktemp("ca")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("::1").configure_cert(context)
    return context, Tls(ca_dir=str(directory))


@pytest.fixture
def plain() -> Iterator[FaultServer]:
    with FaultServer(host="::1") as found:
        yield found


@pytest.fixture
def secure(authority) -> Iterator[FaultServer]:
    with FaultServer(authority[0], host="::1") as found:
        yield found


def test_https(secure, authority):
    with open_http(HttpSourceSpec(url=secure.put("/x", DATA), tls=authority[1]), 10) as source:
        assert read_all(source, 1 << 20) == DATA


def test_https_through_a_proxy(secure, authority):
    with ForwardProxy() as proxy:
        spec = HttpSourceSpec(url=secure.put("/x", DATA), tls=authority[1], proxy=Proxy(https=proxy.url))
        with open_http(spec, 10) as source:
            assert read_all(source, 1 << 20) == DATA
        assert proxy.requests[0] == f"CONNECT [::1]:{secure.port} HTTP/1.1"


def test_s3(plain):
    with open_s3(S3SourceSpec(url=plain.put("/bucket/dir/x", DATA)), 10) as source:
        assert read_all(source, 1 << 20) == DATA


def test_gcs(plain):
    with open_gcs(GcsSourceSpec(url=plain.put("/bucket/dir/x", DATA)), 10) as source:
        assert read_all(source, 1 << 20) == DATA


def test_registry(secure, authority):
    with open_registry(Registry(secure, authority[1]).spec(), 5) as image:
        assert read_all(image.layers[0].source, 1 << 20) == LAYER


@pytest.mark.parametrize(
    "listening",
    [lambda: listen(0), lambda: listen(0, "::1"), lambda: listen_as_asked(0), lambda: listen_as_asked(0, "::1")],
    ids=["all", "one", "all-of-an-option", "one-of-an-option"],
)
def test_servers_listen(listening):
    with listening() as listener, socket.create_connection(("::1", listener.getsockname()[1]), timeout=60):
        pass


def test_a_port_that_is_taken_is_reported_with_its_option():
    with listen(0, "127.0.0.1") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as refused:
            listen_as_asked(port, "127.0.0.1", option="--metrics-port")
    assert refused.value.what.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")
    assert refused.value.remedy == "choose another one with --metrics-port"


def test_a_workers_progress():
    found = serve_status(0, server_context("worker-1"), {})
    try:
        socket.create_connection(("::1", found.port), timeout=60).close()
    finally:
        found.close()
