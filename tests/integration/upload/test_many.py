"""Tests of twenty concurrent uploads through one proxy."""

import random
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.upload.installation import MIB

MANY = 20
SIZE = 32 * MIB
MAX_MEMORY = 150 << 10
"""Maximum memory of the proxy in KiB."""


@pytest.mark.slow
def test_twenty_uploads_at_once(lone, tmp_path):
    content = random.Random(7).randbytes(MIB) * (SIZE // MIB)
    (tmp_path / "image").write_bytes(content)
    names = [f"vm-{number}" for number in range(MANY)]
    with ThreadPoolExecutor(4) as pool:
        servers = list(pool.map(lambda name: lone.start_server(name, size=SIZE), names))
    command = ["curl", "-sS", "--max-time", "100", "--cacert", str(lone.authorities.base / "public-ca.crt")]
    command += ["-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-T", str(tmp_path / "image")]
    clients = [
        subprocess.Popen(
            [*command, "-H", f"Authorization: Bearer {lone.token(name)}", lone.url("/v1beta1/upload")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    assert [client.communicate()[0] for client in clients] == ["200"] * MANY
    for server in servers:
        assert server.outcome().failure is None
        assert server.disk.read_bytes() == content
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{lone.proxy.pid}/status").read_text())
    assert peak is not None
    print("the proxy's peak:", int(peak[1]) >> 10, "MiB")
    assert int(peak[1]) < MAX_MEMORY
