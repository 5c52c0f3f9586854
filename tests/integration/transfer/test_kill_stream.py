"""Tests of streamed content, which cannot be resumed: a killed worker starts over, and the final disk is right."""

import gzip
import hashlib
import lzma
import random
import subprocess

import pytest

from tests.integration.transfer.worker_process import Worker, disk_job, kill_and_restart

pytestmark = pytest.mark.slow
VIRTUAL = 96 << 20


@pytest.fixture(scope="module")
def disk():
    rng = random.Random(3)
    content = bytearray(VIRTUAL)
    for at in range(0, VIRTUAL, 8 << 20):
        content[at : at + (3 << 20)] = rng.randbytes(3 << 20)
    return bytes(content)


@pytest.fixture(scope="module")
def qcow2(disk, tmp_path_factory):
    base = tmp_path_factory.mktemp("stream")
    (base / "raw").write_bytes(disk)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-f", "raw", base / "raw", base / "qcow2"], check=True)
    (base / "raw").unlink()
    return (base / "qcow2").read_bytes()


def test_fifty_kills_of_a_qcow2_without_ranges(disk, qcow2, nginx, tmp_path):
    nginx.put("kill-stream.qcow2", qcow2)
    digest = "sha256:" + hashlib.sha256(qcow2).hexdigest()

    def make_job(number, directory):
        url = nginx.url("kill-stream.qcow2", "plain")
        return disk_job(f"stream-{number}", url, directory, bandwidth=len(qcow2), checksum=digest)

    def check(worker, outcome):
        final = worker.path("disk.img")
        if final.exists() or outcome is not None:
            assert final.read_bytes() == disk
        if outcome is not None:
            assert outcome.digest == digest
            assert outcome.path == "qcow2-stream"
            assert outcome.resumed_at == 0
            # Every byte was fetched in this attempt: nothing of an earlier one was taken for done.
            assert outcome.fetched == len(qcow2)

    kill_and_restart(make_job, tmp_path, kills=50, longest=1.4, check=check)


@pytest.mark.parametrize("kind", ["raw.gz", "qcow2.xz"])
def test_a_wrapped_image_begins_again_although_there_are_ranges(kind, disk, qcow2, nginx, tmp_path):
    data = gzip.compress(disk, 1) if kind == "raw.gz" else lzma.compress(qcow2, preset=0)
    nginx.put(f"kill.{kind}", data)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()

    def make_job(number, directory):
        url = nginx.url(f"kill.{kind}")
        return disk_job(f"{kind}-{number}", url, directory, bandwidth=len(data), checksum=digest)

    def check(worker, outcome):
        if outcome is None:
            assert (worker.journal() or {}).get("watermark", 0) == 0
            return
        assert worker.path("disk.img").read_bytes() == disk
        assert outcome.digest == digest
        assert outcome.resumed_at == 0
        # The first bytes are read for inspection before the stream begins.
        assert len(data) <= outcome.fetched <= len(data) + (1 << 20)

    kill_and_restart(make_job, tmp_path, kills=6, longest=1.4, check=check)


def test_the_progress_of_a_wrapped_image_begins_again_too(disk, nginx, tmp_path):
    data = gzip.compress(disk, 1)
    nginx.put("progress.raw.gz", data)
    worker = Worker(disk_job("p", nginx.url("progress.raw.gz"), tmp_path, bandwidth=len(data) // 2), tmp_path)
    try:
        worker.start().wait_for(lambda: (worker.progress() or {}).get("done", 0) > len(data) // 3)
        assert worker.kill_after(0)
        worker.path("progress.json").unlink()
        worker.start().wait_for(lambda: (worker.progress() or {}).get("done", 0) > 0)
        first = worker.progress()
        assert first["done"] <= first["fetched"]
        assert first["total"] == len(data)
        assert worker.outcome().failure is None
        last = worker.progress()
        assert (last["phase"], last["done"]) == ("done", len(data))
    finally:
        worker.close()
