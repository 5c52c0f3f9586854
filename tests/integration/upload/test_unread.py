"""Tests of clients that never read, beside one that uploads and one that opens the page."""

import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.unreading import unreading
from tests.integration.upload.installation import MIB, same

DISK = 12 * MIB
GET = b"GET /page/js/uploader.js HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "request_", [GET, GET.replace(b"/page/js/uploader.js", b"/none"), GET.replace(b"GET /page/js/uploader.js", b"PUT /v1beta1/upload")],
    ids=["files", "nothing", "refusals"],
)  # fmt: skip
def test_two_hundred_clients_that_never_read_are_in_nobodys_way(lone, images, request_):
    image = images.get("qcow2-zlib")
    server = lone.start_server(size=DISK)
    with unreading(lone.port, request_, 200, lone.context()) as clients:
        command = ["curl", "-sS", "--max-time", "100", "--cacert", str(lone.authorities.base / "public-ca.crt")]
        command += ["-H", f"Authorization: Bearer {lone.token()}", "-w", "%{http_code}", "--limit-rate", "2M"]
        command += ["-X", "POST", "-T", str(image.path), lone.url("/v1beta1/upload")]
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(subprocess.run, command, capture_output=True, text=True)
            opened = 0
            while not upload.done() or opened < 10:
                for path in ("/", "/page/js/uploader.js", "/page/api/about"):
                    with urllib.request.urlopen(lone.url(path), timeout=60, context=lone.context()) as answer:
                        assert answer.status == 200
                        assert answer.read()
                opened += 1
            assert upload.result().stdout == "200"
        # How many are connected at a time depends on how fast the machine lets them come back.
        clients.await_return()
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")
