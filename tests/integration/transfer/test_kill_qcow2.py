"""Tests of qcow2 over ranges with repeatedly killed workers: each resumes where its journal says."""

import hashlib
import random
import subprocess

import pytest

from cdi.image.formats.qcow2 import parse_header
from cdi.image.qcow2_map import Qcow2MapBuilder
from tests.integration.transfer.worker_process import disk_job, kill_and_restart

pytestmark = pytest.mark.slow
VIRTUAL = 192 << 20


@pytest.fixture(scope="module")
def disk():
    """Return a sparse disk with data all over it."""
    rng = random.Random(2)
    content = bytearray(VIRTUAL)
    at = 0
    while at < VIRTUAL - (4 << 20):
        run = rng.randint(1, 2 << 20)
        content[at : at + run] = rng.randbytes(run) if rng.random() < 0.7 else (b"%016x" % at) * (run // 16 + 1)
        at += run + rng.randint(0, 6 << 20)
    return bytes(content[:VIRTUAL])


@pytest.fixture(scope="module")
def images(disk, nginx, tmp_path_factory):
    """Make two files of the disk, plain and compressed: (name, bytes, map)."""
    base = tmp_path_factory.mktemp("qcow2")
    (base / "disk.raw").write_bytes(disk)
    found = []
    for name, options in (("kill-plain.qcow2", []), ("kill-packed.qcow2", ["-c"])):
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, base / "disk.raw", nginx.root / name]
        subprocess.run(convert, check=True)
        data = (nginx.root / name).read_bytes()
        builder = Qcow2MapBuilder(parse_header(data[: 64 << 10], len(data)), len(data))
        tables = builder.begin()
        while tables:
            table = tables.pop()
            tables += builder.feed(table, data[table.offset : table.offset + table.size])[0]
        builder.finish()
        found.append((name, data, builder.map))
    (base / "disk.raw").unlink()
    return found


def test_fifty_kills(disk, images, nginx, tmp_path):
    digests = {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data, _ in images}
    seen = []

    def make_job(number, directory):
        name, data, _ = images[number % 2]
        # With a digest every byte of the file is fetched; without, only those that hold data.
        checksum = digests[name] if number % 4 < 2 else None
        return disk_job(f"qcow2-{number}", nginx.url(name), directory, bandwidth=len(data) // 2, checksum=checksum)

    def check(worker, outcome):
        final = worker.path("disk.img")
        name = worker.job.source.url.rpartition("/")[2]
        image = next(image for found, _, image in images if found == name)
        if outcome is None:
            if final.exists():
                assert final.read_bytes() == disk
            elif (journal := worker.journal()) is not None:
                seen.append(journal["watermark"])
                written = worker.path(".disk.img.partial").read_bytes()
                for extent in map(image.extent, range(len(image))):
                    if extent.host < journal["watermark"]:
                        at = slice(extent.guest, extent.guest + extent.length)
                        assert written[at] == disk[at]
            return
        assert final.read_bytes() == disk
        assert outcome.digest == worker.job.checksum
        assert outcome.path == "qcow2-ranged"
        assert not worker.path("journal").exists()

    outcomes = kill_and_restart(make_job, tmp_path, kills=50, longest=1.5, check=check)
    assert any(outcome.resumed_at > 0 for outcome in outcomes)
    assert any(seen)
