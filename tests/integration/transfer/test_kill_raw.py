"""Tests of a raw image over ranges with repeatedly killed workers: only time is lost."""

import hashlib
import random

import pytest

from tests.integration.transfer.worker_process import disk_job, kill_and_restart

pytestmark = pytest.mark.slow
RATE = 24 << 20


@pytest.fixture(scope="module")
def image():
    """Return 48 MiB, a third of it zeros, in runs that are not aligned with the importer's pieces."""
    rng = random.Random(1)
    parts = []
    size = 0
    while size < 48 << 20:
        run = rng.randint(1, 3 << 20)
        parts.append(bytes(run // 2) + rng.randbytes(run))
        size += len(parts[-1])
    return b"".join(parts)[: (48 << 20) - 512]


def test_fifty_kills(image, nginx, tmp_path):
    nginx.put("kill.raw", image)
    digest = "sha256:" + hashlib.sha256(image).hexdigest()
    seen = []

    def make_job(number, directory):
        # Every second import has no given digest: then the validator alone shows that it is the same content.
        checksum = digest if number % 2 else None
        return disk_job(f"raw-{number}", nginx.url("kill.raw"), directory, bandwidth=RATE, checksum=checksum)

    def check(worker, outcome):
        disk = worker.path("disk.img")
        if outcome is None:
            journal = worker.journal()
            if journal is not None:
                # Everything that the journal counts as done must be on the disk.
                mark = journal["watermark"]
                seen.append(mark)
                with open(disk if disk.exists() else worker.path(".disk.img.partial"), "rb") as file:
                    assert file.read(mark) == image[:mark]
            if disk.exists():
                assert disk.read_bytes() == image
            return
        assert disk.read_bytes() == image
        assert outcome.digest == (digest if worker.job.checksum else None)
        assert outcome.path == "raw-ranged"
        assert sorted(p.name for p in worker.directory.iterdir()) == [
            "disk.img", "job.json", "lock", "outcome.json", "progress.json",
        ]  # fmt: skip

    outcomes = kill_and_restart(make_job, tmp_path, kills=50, longest=1.4, check=check)
    assert any(outcome.resumed_at > 0 for outcome in outcomes)
    assert any(seen)
