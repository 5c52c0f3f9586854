"""Tests of clients that never read, beside one that uploads to ``cdi serve`` and one that opens the page."""

import json
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from tests.faults.unreading import unreading
from tests.integration.page.conftest import TOKEN

FILES = b"GET /page/js/uploader.js HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_two_hundred_clients_that_never_read_are_in_nobodys_way(machine, images):
    machine.make("vm")
    machine.await_phase("vm", "UploadReady")
    url = machine.url.rstrip("/")
    with unreading(urlsplit(url).port, FILES, 200) as clients:
        command = ["curl", "-sS", "--max-time", "100", "-H", f"Authorization: Bearer {machine.token('vm')}"]
        command += ["-w", "%{http_code}", "--limit-rate", "4M", "--data-binary", f"@{images / 'disk.raw'}"]
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(subprocess.run, [*command, f"{url}/v1beta1/upload"], capture_output=True, text=True)
            opened = 0
            while not upload.done() or opened < 10:
                for path in ("/", "/page/js/uploader.js", "/page/api/about"):
                    with urllib.request.urlopen(url + path, timeout=60) as answer:
                        assert answer.status == 200
                        assert answer.read()
                asked = urllib.request.Request(f"{url}/page/api/session", headers={"Authorization": f"Bearer {TOKEN}"})
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    assert json.load(answer)["may"]["upload"] is True
                opened += 1
            assert upload.result().stdout == "200"
        # How many are connected at a time depends on how fast the machine lets them come back.
        clients.await_return()
    machine.await_phase("vm", "Succeeded")
    assert machine.disk("vm").read_bytes() == (images / "disk.raw").read_bytes()
