"""Tests of resuming on a block device after the worker was killed, also for a disk smaller than the device."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cdi.api.job import BlockTargetSpec, Limits
from tests.integration.fixtures_images import DEVICE
from tests.integration.transfer.worker_process import Worker, disk_job

pytestmark = pytest.mark.root
MIB = 1 << 20
IMAGE = 8 * MIB
SIZE = 10 * MIB


@pytest.fixture(scope="module")
def disk():
    rng = random.Random(12)
    return b"".join(rng.randbytes(MIB - 8192) + bytes(8192) for _ in range(IMAGE // MIB))


def content(kind, disk, tmp_path):
    if kind == "raw":
        return disk
    from tests.integration.fixtures_images import run

    (tmp_path / "raw").write_bytes(disk)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(tmp_path / "raw"), str(tmp_path / "qcow2"))
    return (tmp_path / "qcow2").read_bytes()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("size", [None, IMAGE, SIZE])
def test_a_killed_import_onto_a_device_is_gone_on_with(kind, size, disk, volumes, fault_server, tmp_path):
    volume = volumes("block512")
    before = volume.content()
    data = content(kind, disk, tmp_path)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    job = disk_job("device", fault_server.put("/disk", data), tmp_path, bandwidth=2 * MIB, checksum=digest)
    worker = Worker(replace(job, target=BlockTargetSpec(path=volume.device), size=size), tmp_path)
    try:
        worker.start().wait_for(lambda: (worker.journal() or {}).get("watermark", 0) > 0)
        assert worker.kill_after(0)
        mark = worker.journal()["watermark"]
        worker.path("control.json").write_text(Limits().to_json())
        outcome = worker.start().outcome()
    finally:
        worker.close()
    assert outcome.failure is None, outcome.failure
    assert outcome.warnings == ()
    assert outcome.resumed_at == mark > 0
    assert outcome.fetched <= len(data) - mark + MIB
    assert outcome.digest == digest
    end = DEVICE if size is None else size
    assert outcome.disk_size == end
    found = volume.content()
    assert found[:IMAGE] == disk
    assert found[IMAGE:end].count(0) == end - IMAGE
    # The import leaves the device beyond the disk unchanged.
    assert found[end:] == before[end:]


def test_a_journal_of_another_size_is_not_gone_on_with(disk, volumes, fault_server, tmp_path):
    """The disk is larger now, and the device behind the old one was never zeroed."""
    volume = volumes("block512")
    job = disk_job("device", fault_server.put("/disk", disk), tmp_path, bandwidth=2 * MIB)
    worker = Worker(replace(job, target=BlockTargetSpec(path=volume.device), size=IMAGE), tmp_path)
    try:
        worker.start().wait_for(lambda: (worker.journal() or {}).get("watermark", 0) > 0)
        assert worker.kill_after(0)
        larger = json.loads(worker.job_path.read_text()) | {"size": SIZE}
        Path(worker.job_path).write_text(json.dumps(larger))
        worker.path("control.json").write_text(Limits().to_json())
        outcome = worker.start().outcome()
    finally:
        worker.close()
    assert outcome.failure is None, outcome.failure
    assert outcome.resumed_at == 0
    assert outcome.disk_size == SIZE
    found = volume.content()
    assert found[:IMAGE] == disk
    assert found[IMAGE:SIZE].count(0) == SIZE - IMAGE
