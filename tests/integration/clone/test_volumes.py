"""Clones between all kinds and sizes of volumes."""

import os
import random
import subprocess
import threading
import time

import pytest

from cdi.api.job import BlockTargetSpec, Policy
from cdi.target import linux
from tests.clone_digest import digest_of_file as digest
from tests.integration.clone.pair import Target, clone, source_job
from tests.integration.target.test_devices import loop, mounted

MIB = 1 << 20

root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="this kernel has no loop devices"),
]


def sparse(path, size=40 * MIB):
    """Write data in a few places, one of them at the very end."""
    made = random.Random(3)
    with open(path, "wb") as file:
        for at, length in ((0, 10_000), (3 * MIB - 4096, 8192), (17 * MIB + 512, 2 * MIB), (size - 700, 700)):
            file.seek(at)
            file.write(made.randbytes(length))
    return path


@pytest.fixture
def source(tmp_path):
    return sparse(tmp_path / "source.img")


@pytest.fixture(params=[512, 4096])
def dirty(tmp_path, request):
    """Return a device of 64 MiB full of old data."""
    with loop(tmp_path / "dirty", 64 * MIB, request.param) as name:
        subprocess.run(f"yes garbage | dd of={name} bs=1M iflag=fullblock status=none 2>&1", shell=True)
        yield name


def content(path, size=None):
    with open(path, "rb") as file:
        return file.read() if size is None else file.read(size)


def test_a_disk_file_stays_sparse(tmp_path, certificates, source):
    before = os.stat(source)
    target, sent = clone(certificates, source, tmp_path / "disk.img", journal=str(tmp_path / "journal"))
    assert target.failure is None
    assert sent.failure is None
    assert content(tmp_path / "disk.img") == content(source)
    assert target.digest == sent.digest == digest(source)
    assert target.disk_size == target.virtual_size == 40 * MIB
    assert "content digest" in target.verified_by
    # Of 40 MiB, slightly more than two were read, sent and written.
    assert os.stat(tmp_path / "disk.img").st_blocks <= before.st_blocks + 8
    for counted in (sent.fetched, sent.written, target.fetched, target.written):
        assert 2 * MIB < counted < 9 * MIB
    assert sorted(os.listdir(tmp_path)) == ["disk.img", "source.img"]
    assert os.stat(source).st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("preallocation", [False, True])
def test_the_disk_has_its_sources_size_on_a_larger_volume(tmp_path, certificates, source, preallocation):
    policy = Policy(preallocation=preallocation)
    target, _ = clone(certificates, source, tmp_path / "disk.img", size=100 * MIB, policy=policy)
    assert target.failure is None
    assert (target.virtual_size, target.disk_size) == (40 * MIB, 40 * MIB)
    assert content(tmp_path / "disk.img") == content(source)
    assert target.preallocated is preallocation


@pytest.mark.parametrize("preallocation", [False, True])
@pytest.mark.parametrize("length", [61, MIB + 700])
@pytest.mark.parametrize("size", [None, 4 * MIB])
def test_a_size_that_is_no_whole_number_of_blocks_is_kept(tmp_path, certificates, length, size, preallocation):
    (tmp_path / "source.img").write_bytes(b"x" * length)
    policy = Policy(preallocation=preallocation)
    target, _ = clone(certificates, tmp_path / "source.img", tmp_path / "disk.img", size=size, policy=policy)
    assert target.failure is None
    assert target.disk_size == length
    assert content(tmp_path / "disk.img") == b"x" * length


@pytest.mark.parametrize("size", [0, MIB])
def test_an_empty_disk(tmp_path, certificates, size):
    with open(tmp_path / "source.img", "wb") as file:
        file.truncate(size)
    target, sent = clone(certificates, tmp_path / "source.img", tmp_path / "disk.img")
    assert target.failure is None
    assert sent.failure is None
    assert content(tmp_path / "disk.img") == bytes(size)
    assert os.stat(tmp_path / "disk.img").st_blocks == 0


def test_preallocation(tmp_path, certificates, source):
    target, _ = clone(certificates, source, tmp_path / "disk.img", policy=Policy(preallocation=True))
    assert target.preallocated
    assert os.stat(tmp_path / "disk.img").st_blocks * 512 >= 40 * MIB
    assert content(tmp_path / "disk.img") == content(source)


def test_a_smaller_target_is_refused_with_both_sizes_and_left_alone(tmp_path, certificates, source):
    (tmp_path / "disk.img").write_bytes(b"an older disk")
    target, sent = clone(certificates, source, tmp_path / "disk.img", size=20 * MIB)
    for outcome in (target, sent):
        assert outcome.failure.code == "TargetTooSmall"
        assert str(40 * MIB) in outcome.failure.message
        assert str(20 * MIB) in outcome.failure.message
    assert (tmp_path / "disk.img").read_bytes() == b"an older disk"
    assert sorted(os.listdir(tmp_path)) == ["disk.img", "source.img"]


def test_a_source_that_is_not_there(tmp_path, certificates):
    filled = Target(certificates, tmp_path / "disk.img")
    from cdi.transfer.clone.send import send
    from cdi.transfer.control import TransferControl

    job = source_job(certificates, tmp_path / "nothing.img", filled.port)
    assert send(job, TransferControl(job)).failure.code == "SourceNotFound"
    filled.control.cancel()
    assert filled.end().failure.code == "Interrupted"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_a_source_that_is_no_disk(tmp_path, certificates, make):
    from cdi.transfer.clone.send import send
    from cdi.transfer.control import TransferControl

    make(tmp_path / "source.img")
    job = source_job(certificates, tmp_path / "source.img", 1)
    assert send(job, TransferControl(job)).failure.code == "SourceNotSupported"


def write_meanwhile(path, control):
    """Write to the disk once something was sent."""

    def write():
        while control.meter.done == 0 and control.meter.phase != "done":
            time.sleep(0.005)
        with open(path, "r+b") as file:
            file.seek(5 * MIB)
            file.write(b"written meanwhile")

    threading.Thread(target=write, daemon=True).start()


def test_a_source_that_is_written_to_is_begun_again(tmp_path, certificates, source):
    target, sent = clone(
        certificates,
        source,
        tmp_path / "disk.img",
        from_fields={"policy": Policy(bandwidth=4 * MIB)},
        watch=lambda control: write_meanwhile(source, control),
        journal=str(tmp_path / "journal"),
    )
    assert target.failure is None
    assert sent.failure is None
    assert any("was modified" in warning for warning in sent.warnings)
    assert any("was modified" in warning for warning in target.warnings)
    assert content(tmp_path / "disk.img") == content(source)
    assert b"written meanwhile" in content(tmp_path / "disk.img")


def test_the_source_is_given_up_when_it_never_holds_still(tmp_path, certificates, source):
    _, sent = clone(
        certificates,
        source,
        tmp_path / "disk.img",
        from_fields={"policy": Policy(bandwidth=4 * MIB, retries=0)},
        watch=lambda control: write_meanwhile(source, control),
        patience=1.0,
    )
    assert sent.failure.code == "SourceChanged"
    assert sorted(os.listdir(tmp_path)) == ["source.img"] or not (tmp_path / "disk.img").exists()


@pytest.mark.parametrize("marks", [pytest.param(None, marks=root)])
class TestDevices:
    def test_a_file_to_a_device_that_was_used(self, certificates, source, dirty, marks):
        target, sent = clone(certificates, source, BlockTargetSpec(path=dirty))
        assert target.failure is None
        assert sent.failure is None
        assert target.disk_size == 64 * MIB
        assert content(dirty) == content(source) + bytes(24 * MIB)

    def test_a_device_to_a_file(self, tmp_path, certificates, dirty, marks):
        with open(dirty, "r+b") as file:
            file.seek(20 * MIB)
            file.write(bytes(30 * MIB))
        target, sent = clone(certificates, dirty, tmp_path / "disk.img", size=80 * MIB)
        assert target.failure is None
        assert content(tmp_path / "disk.img") == content(dirty)
        # A device does not report holes; zeros are found by reading.
        assert os.stat(tmp_path / "disk.img").st_blocks * 512 < 35 * MIB
        assert sent.fetched == 64 * MIB
        assert target.digest == digest(dirty)

    def test_a_device_that_is_too_small(self, tmp_path, certificates, dirty, marks):
        with open(tmp_path / "large.img", "wb") as file:
            file.write(b"x")
            file.truncate(65 * MIB)
        before = content(dirty)
        target, sent = clone(certificates, tmp_path / "large.img", BlockTargetSpec(path=dirty))
        for outcome in (target, sent):
            assert outcome.failure.code == "TargetTooSmall"
            assert str(65 * MIB) in outcome.failure.message
            assert str(64 * MIB) in outcome.failure.message
        assert content(dirty) == before

    @pytest.mark.parametrize("kind", ["ext4", "xfs"])
    def test_sparse_and_preallocated_files(self, tmp_path, certificates, kind, marks):
        """Ranges that the file system knows to be zero are neither read nor sent, written or not."""
        with mounted(tmp_path, kind, 512 * MIB) as place:
            (place / "target").mkdir()
            source = sparse(place / "source.img", 200 * MIB)
            with open(source, "r+b") as file:
                linux.fallocate(file.fileno(), 0, 60 * MIB, 50 * MIB)
                file.seek(70 * MIB)
                file.write(b"in the midst of what is reserved")
            os.sync()
            target, sent = clone(certificates, source, place / "target/disk.img")
            assert target.failure is None
            assert sent.fetched < 12 * MIB
            command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", source, place / "target/disk.img"]
            assert subprocess.run(command, capture_output=True).returncode == 0
            assert os.stat(place / "target/disk.img").st_blocks * 512 < 4 * MIB

    def test_a_full_volume(self, tmp_path, certificates, marks):
        """Both ends report it, and the received data stays for when there is space."""
        (tmp_path / "source.img").write_bytes(os.urandom(60 * MIB))
        with mounted(tmp_path, "tmpfs", 40 * MIB) as place:
            journal = str(tmp_path / "journal")
            target, sent = clone(certificates, tmp_path / "source.img", place / "disk.img", journal=journal)
            assert target.failure.code == sent.failure.code == "TargetFull"
            assert os.listdir(place) == [".disk.img.partial"]
            subprocess.run(["mount", "-o", "remount,size=80m", place], check=True)
            target, sent = clone(certificates, tmp_path / "source.img", place / "disk.img", journal=journal)
            assert target.failure is None
            assert target.resumed_at > 0
            assert content(place / "disk.img") == content(tmp_path / "source.img")
