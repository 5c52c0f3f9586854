"""Tests of the proxy's metrics."""

import urllib.error
import urllib.request

import pytest

from tests.integration.upload.installation import connected, progress, same, wait_until

DISK = 12 << 20
UPLOADS = "cdi_uploadproxy_uploads"
BYTES = "cdi_uploadproxy_received_bytes_total"


def requests(path, code):
    return f'cdi_uploadproxy_requests_total{{code="{code}",path="{path}"}}'


def test_an_upload_is_seen_while_it_runs_and_counted_when_it_ends(lone, images):
    image = images.get("qcow2-zlib")
    server = lone.start_server(size=DISK)
    size = len(image.content)
    before = lone.metrics()
    assert (before[UPLOADS], before[BYTES]) == (0, 0)
    head = f"POST /v1beta1/upload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {lone.token()}\r\n"
    with connected(lone) as sock:
        sock.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + image.content[:300_000])
        wait_until(lambda: progress(server)["progress"]["fetched"] > 0)
        during = lone.metrics()
        assert during[UPLOADS] == 1
        assert 0 < during[BYTES] <= 300_000
        assert requests("/v1beta1/upload", 200) not in during
        sock.sendall(image.content[300_000:])
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert lone.curl("/v1beta1/upload", "-d", "x", token="none").status == 401
    assert lone.curl("/somewhere/else").status == 404
    wait_until(lambda: requests("other", 404) in lone.metrics())
    after = lone.metrics()
    assert (after[UPLOADS], after[BYTES]) == (0, size)
    assert after[requests("/v1beta1/upload", 200)] == 1
    assert after[requests("/v1beta1/upload", 401)] == 1
    assert after["process_resident_memory_bytes"] > 0
    same(server.disk, image.path, "qcow2")


def test_it_is_told_at_its_own_port_alone(installation):
    assert installation.curl("/metrics").status == 404
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://localhost:{installation.metrics_port}/v1beta1/upload", timeout=30)
    assert refused.value.code == 404
    refused.value.close()
