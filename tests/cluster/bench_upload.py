"""Benchmark of uploads in a cluster: scripts/bench --cluster --case upload.

Uploads go through the chart's upload proxy and are measured from the DataVolume's `apply` to Succeeded. They are
compared with a bare pod plus the same upload on one machine, with a proxy and an upload server as processes and TLS on
loopback.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from cdi.api.kinds import DATA_VOLUMES
from tests.cluster.bench import TIMEOUT, Bench, data_volume
from tests.cluster.upload_release import Uploads, installed
from tests.integration.upload.installation import Authorities, Stand


def upload(bench: Bench, image: Path) -> None:
    """Measure an upload and add the row to the benchmark."""
    with tempfile.TemporaryDirectory(dir=os.environ["CDI_CACHE"]) as directory:
        base = Path(directory)
        with installed(bench.cluster, base) as uploads:
            there = replace(bench, kubectl=uploads.work)
            _ours(there, uploads, "warm-up", image)
            bare, here, ours = bench.turns(
                lambda run: bench.bare([f"bare-{run}"], "3Gi"),
                lambda run: _one_machine(base / f"run-{run}", image),
                lambda run: _ours(there, uploads, f"upload-{run}", image),
            )
    goal = bare + 1.3 * here
    bench.add(
        f"{image.stat().st_size / 1e6:.0f} MB compressed qcow2 of a 2 GiB disk, uploaded",
        "≤ bare pod + 1.3 x the upload on one machine",
        f"{ours:.2f} s", f"{bare:.2f} s + 1.3 x {here:.2f} s = {goal:.2f} s", share=ours / goal,
    )  # fmt: skip


def _ours(bench: Bench, uploads: Uploads, name: str, image: Path) -> float:
    def send() -> None:
        bench.kubectl.apply(data_volume(name, "3Gi", {"upload": {}}))
        # A token requires an existing claim. The proxy waits for the pod; curl retries if that takes longer.
        uploads.work.wait("persistentvolumeclaim", name, "there", lambda _: True, TIMEOUT)
        said = uploads.curl(
            "/v1beta1/upload", "-X", "POST", "-T", str(image), "--retry", "20", "--retry-delay", "1",
            token=uploads.token(name), seconds=TIMEOUT,
        )  # fmt: skip
        if said.status != 200:
            raise AssertionError(said)

    took = bench.until(DATA_VOLUMES, {name}, "Succeeded", send)
    bench.clean()
    return took


def _one_machine(base: Path, image: Path) -> float:
    home = base / "home"
    home.mkdir(parents=True)
    installation = Stand(Authorities(base), base, home)
    installation.start_proxy()
    try:
        server = installation.start_server("vm")
        began = time.monotonic()
        answer = installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image), seconds=int(TIMEOUT))
        took = time.monotonic() - began
        if answer.status != 200:
            raise AssertionError(answer)
        server.outcome()
        server.disk.unlink()
    finally:
        installation.stop_servers()
        installation.stop_proxy()
    return took
