"""Tests that a worker and its child processes fit into 192 MiB on every path; the kernel would kill them otherwise."""

import array
import functools
import hashlib
import random
import shutil
import struct
import subprocess
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.transfer.worker_process import Worker, disk_job

pytestmark = [pytest.mark.root, pytest.mark.slow]
MIB = 1 << 20
LIMIT = 192 * MIB
VIRTUAL = 192 * MIB
"""Size of the disk in bytes: more than the largest window of a decoder, 128 MiB."""
PART = 96 * MIB
"""Size of the disk in bytes for xz, which is slow to compress: more than its largest dictionary, 64 MiB."""


class Cage:
    """A memory cgroup, version 1 or 2; `peak` is the largest use observed, without the page cache."""

    def __init__(self):
        name = f"cdi-test-{uuid.uuid4().hex[:8]}"
        first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        if (first / "memory.limit_in_bytes").exists():
            self.path, self.limit_file, self.counter = first / name, "memory.limit_in_bytes", "total_rss"
        elif (second / "cgroup.controllers").exists() and "memory" in (second / "cgroup.controllers").read_text():
            (second / "cgroup.subtree_control").write_text("+memory")
            self.path, self.limit_file, self.counter = second / name, "memory.max", "anon"
        else:
            pytest.skip("there is no memory controller")
        self.path.mkdir()
        (self.path / self.limit_file).write_text(str(LIMIT))
        # Swap must not extend the limit.
        for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            if (self.path / name).exists():
                (self.path / name).write_text(str(LIMIT) if "memsw" in name else "0")
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def prefix(self):
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs; exec "$@"', "sh")

    def _watch(self):
        while not self._stop.wait(0.05):
            for line in (self.path / "memory.stat").read_text().splitlines():
                name, value = line.split()
                if name == self.counter:
                    self.peak = max(self.peak, int(value))

    def close(self):
        self._stop.set()
        self._thread.join()
        for _ in range(200):
            if not (self.path / "cgroup.procs").read_text():
                break
            time.sleep(0.01)
        self.path.rmdir()


@pytest.fixture
def cage():
    cage = Cage()
    yield cage
    cage.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("memory")
    yield base
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def disk(base):
    """Make a sparse file of 192 MiB: noise, text and holes in turn."""
    rng, path = random.Random(9), base / "disk"
    with open(path, "wb") as file:
        file.write(rng.randbytes(512))
        for at in range(MIB, VIRTUAL, 12 * MIB):
            file.seek(at)
            file.write(rng.randbytes(MIB))
            file.writelines(b"%064x" % (at + line) * (MIB // 64) for line in range(3))
        file.truncate(VIRTUAL)
    return path


@pytest.fixture(scope="module")
def digest(disk):
    """Return a function that returns the digest of the disk in an image of a kind."""

    @functools.cache
    def of(size):
        with open(disk, "rb") as file:
            return hashlib.sha256(file.read(size)).hexdigest()

    return lambda kind: of(PART if kind.startswith("xz") else VIRTUAL)


def convert(*options):
    return lambda disk, out: ["qemu-img", "convert", "-f", "raw", *options, disk, out]


def packed(command):
    return lambda disk, out: ["sh", "-c", f"exec < '{disk}' > '{out}'; {command}"]


WAYS = {
    "raw": lambda disk, out: ["cp", "--sparse=always", disk, out],
    "gz": packed("pigz -1"),
    # The largest dictionary that is accepted, in one block and in several.
    "xz": packed(f"head -c {PART} | xz -T1 -0 --lzma2=preset=0,dict=64MiB"),
    "xz-blocks": packed(f"head -c {PART} | xz -T2 --block-size=24MiB --lzma2=preset=0,dict=64MiB"),
    "zst": packed("zstd -q -1"),
    # The largest window that decoders accept by default.
    "zst-long": packed("zstd -q -3 --long=27"),
    "qcow2": convert("-O", "qcow2"),
    "qcow2-packed": convert("-O", "qcow2", "-c"),
    "qcow2-zstd": convert("-O", "qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2-large-clusters": convert("-O", "qcow2", "-c", "-o", "cluster_size=2M"),
    "vmdk": convert("-O", "vmdk"),
    "vmdk-stream": convert("-O", "vmdk", "-o", "subformat=streamOptimized"),
    "vhdx": convert("-O", "vhdx"),
    "vdi": convert("-O", "vdi"),
}


@pytest.fixture(scope="module")
def served(disk, nginx):
    """Return a function that makes a form of the disk on first use and returns its name."""

    def make(kind):
        name = f"memory.{kind}"
        if not (nginx.root / name).exists():
            subprocess.run(WAYS[kind](disk, nginx.root / name), check=True)
        return name

    yield make
    for path in nginx.root.glob("memory.*"):
        path.unlink()


def run_in(cage, worker):
    try:
        outcome = worker.start(cage.prefix).outcome(timeout=300)
        print(f"{worker.job.id}: {cage.peak / MIB:.0f} MiB, {outcome.seconds} s")
        assert outcome.failure is None, outcome.failure
        assert cage.peak > 0
    finally:
        worker.close()
    return outcome


def imported(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize(
    ("kind", "way", "path"),
    [
        ("raw", "", "raw-ranged"),
        ("raw", "plain", "raw-stream"),
        ("gz", "", "raw-stream"),
        ("gz", "plain", "raw-stream"),
        ("xz", "", "raw-stream"),
        ("xz-blocks", "", "raw-stream"),
        ("zst", "", "raw-stream"),
        ("zst-long", "", "raw-stream"),
        ("qcow2", "", "qcow2-ranged"),
        ("qcow2", "plain", "qcow2-stream"),
        ("qcow2-packed", "", "qcow2-ranged"),
        ("qcow2-packed", "plain", "qcow2-stream"),
        ("qcow2-zstd", "", "qcow2-ranged"),
        ("qcow2-zstd", "plain", "qcow2-stream"),
        ("qcow2-large-clusters", "", "qcow2-ranged"),
        ("qcow2-large-clusters", "plain", "qcow2-stream"),
        ("vmdk", "", "mapped-ranged"),
        ("vmdk", "plain", "mapped-stream"),
        ("vmdk-stream", "", "mapped-ranged"),
        ("vmdk-stream", "plain", "mapped-stream"),
        ("vhdx", "", "mapped-ranged"),
        ("vhdx", "plain", "mapped-stream"),
        ("vdi", "", "mapped-ranged"),
        ("vdi", "plain", "mapped-stream"),
    ],
)
def test_each_path(kind, way, path, cage, served, digest, nginx, tmp_path):
    with open(nginx.root / served(kind), "rb") as file:
        checksum = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    job = disk_job(f"{kind}-{way or 'ranges'}", nginx.url(served(kind), way), tmp_path, checksum=checksum)
    outcome = run_in(cage, Worker(replace(job, scratch=str(tmp_path)), tmp_path))
    assert outcome.path == path
    assert imported(tmp_path / "disk.img") == digest(kind)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "qcow2-packed", "qcow2-large-clusters", "gz"])
def test_many_connections(kind, cage, served, digest, nginx, tmp_path):
    """The memory for each connection shrinks with their number."""
    job = disk_job(f"{kind}-connections", nginx.url(served(kind)), tmp_path, connections=64)
    run_in(cage, Worker(job, tmp_path))
    assert imported(tmp_path / "disk.img") == digest(kind)


@pytest.fixture(scope="module")
def extents(nginx):
    """Make a qcow2 of 512 MiB in scattered clusters of 512 bytes, a million extents; return it and some contents."""
    bits, cluster, count = 9, 512, (1 << 20) - 512
    entries = cluster // 8
    tables = -(-count // entries)
    l1_at = 2 * cluster
    l2_at = l1_at + -(-tables * 8 // cluster) * cluster
    data_at = l2_at + tables * cluster
    # A step that has no factor in common with the count visits every cluster once.
    order = array.array("Q", ((number * 514229) % count for number in range(count)))
    l2 = array.array("Q", (1 << 63 | (data_at + place * cluster) for place in order))
    l1 = array.array("Q", (1 << 63 | (l2_at + number * cluster) for number in range(tables)))
    l2.byteswap(), l1.byteswap()
    path = nginx.root / "extents.qcow2"
    with open(path, "wb") as file:
        file.write(
            struct.pack(
                ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, bits, count * cluster, 0, tables, l1_at,
                cluster, 1, 0, 0, 0, 0, 0, 4, 104,
            )
        )  # fmt: skip
        file.seek(l1_at)
        l1.tofile(file)
        file.seek(l2_at)
        l2.tofile(file)
        # Every thousandth cluster holds its own number.
        marks = {place: number for number, place in enumerate(order) if number % 1000 == 0}
        for place, number in sorted(marks.items()):
            file.seek(data_at + place * cluster)
            file.write(b"%016d" % number)
        file.truncate(data_at + count * cluster)
    yield path.name, {number * cluster: b"%016d" % number for number in marks.values()}
    path.unlink()


@pytest.mark.parametrize(("way", "connections"), [("", 64), ("plain", 0)])
def test_as_many_extents_as_a_map_holds_in_no_order(way, connections, cage, nginx, extents, tmp_path):
    name, marks = extents
    job = disk_job("extents", nginx.url(name, way), tmp_path, connections=connections)
    outcome = run_in(cage, Worker(job, tmp_path))
    assert outcome.path == ("qcow2-stream" if way else "qcow2-ranged")
    assert outcome.warnings == ()
    with open(tmp_path / "disk.img", "rb") as disk:
        for at, mark in marks.items():
            disk.seek(at)
            assert disk.read(16) == mark


def test_the_cage_closes(cage, nginx, served, tmp_path):
    """A worker that needs more than the limit is killed."""
    (cage.path / cage.limit_file).write_text(str(16 * MIB))
    worker = Worker(disk_job("small", nginx.url(served("raw")), tmp_path), tmp_path)
    try:
        worker.start(cage.prefix)
        worker.process.communicate(timeout=100)
        assert worker.process.returncode != 0
        assert not (tmp_path / "disk.img").exists()
    finally:
        worker.close()
