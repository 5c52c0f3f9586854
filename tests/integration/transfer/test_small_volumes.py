"""Disks on file systems that have less room than their volume's size promises."""

import os
import subprocess
from contextlib import closing

import pytest

from cdi.api.job import BlankSourceSpec, FileSourceSpec, FileTargetSpec, Job, Policy
from cdi.api.overhead import usable
from cdi.target.file import DiskFile
from cdi.transfer.available_size import size_within_room
from cdi.transfer.control import TransferControl
from cdi.transfer.journal import Journal
from cdi.transfer.run import transfer
from tests.integration.fixtures_images import loop, run

MIB = 1 << 20
VOLUME = 64 * MIB
DATA = os.urandom(3 * MIB)


@pytest.fixture
def volume(tmp_path):
    """Mount an ext4 of 64 MiB, whose journal and tables take more than 6 % of it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path / "mounted"
    place.mkdir()
    with loop(tmp_path / "fs", VOLUME, 512) as device:
        run("mkfs.ext4", "-q", "-F", "-m", "0", device)
        run("mount", device, str(place))
        try:
            yield place
        finally:
            run("umount", str(place))


def available(place):
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@pytest.fixture
def fill(volume, tmp_path):
    def fill(source, *, preallocation, journal=False, size=None):
        job = Job(
            id="x",
            source=source,
            target=FileTargetSpec(path=str(volume / "disk.img"), volume=VOLUME, overhead=60),
            size=size or usable(VOLUME),
            policy=Policy(preallocation=preallocation, discover_checksum=False),
            journal=str(tmp_path / "journal") if journal else None,
        )
        return transfer(job, TransferControl(job))

    return fill


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "image").write_bytes(DATA)
    return FileSourceSpec(path=str(tmp_path / "image"))


@pytest.fixture
def qcow2(tmp_path):
    """Return a function that makes an empty image of a size in bytes."""

    def make(size):
        path = tmp_path / "image.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
        return FileSourceSpec(path=str(path))

    return make


@pytest.mark.parametrize("preallocation", [True, False])
def test_a_disk_takes_what_is_available(volume, fill, raw, preallocation):
    room = available(volume)
    assert usable(room) < usable(VOLUME)
    outcome = fill(raw, preallocation=preallocation)
    assert outcome.failure is None, outcome.failure
    assert outcome.disk_size == usable(room)
    disk = volume / "disk.img"
    assert disk.stat().st_size == usable(room)
    assert disk.read_bytes()[: len(DATA)] == DATA
    assert (disk.stat().st_blocks * 512 >= usable(room)) is preallocation


def test_a_blank_disk_takes_what_is_available(volume, fill):
    room = available(volume)
    outcome = fill(BlankSourceSpec(), preallocation=True)
    assert outcome.failure is None, outcome.failure
    assert (volume / "disk.img").stat().st_size == usable(room)


def test_a_disk_never_becomes_smaller_than_its_image(volume, fill, qcow2):
    size = usable(VOLUME)
    outcome = fill(qcow2(size), preallocation=False)
    assert outcome.failure is None, outcome.failure
    assert (volume / "disk.img").stat().st_size == size


def test_an_image_without_room_for_all_its_blocks_is_not_preallocated(fill, qcow2):
    outcome = fill(qcow2(usable(VOLUME)), preallocation=True)
    assert outcome.failure is not None
    assert outcome.failure.code == "TargetFull"


def test_a_volume_with_enough_room_gets_the_size_that_was_asked_for(volume, fill, raw):
    outcome = fill(raw, preallocation=True, size=20 * MIB)
    assert outcome.failure is None, outcome.failure
    assert (volume / "disk.img").stat().st_size == 20 * MIB


def test_a_resumed_disk_keeps_the_size_that_it_began_with(volume, tmp_path):
    spec = FileTargetSpec(path=str(volume / "disk.img"), volume=VOLUME, overhead=60)
    job = Job(id="x", source=BlankSourceSpec(), target=spec, size=usable(VOLUME), journal=str(tmp_path / "journal"))
    with closing(DiskFile(spec)) as target:
        first = size_within_room(job, target, 0)
        assert first == usable(available(volume))
        target.resize(first)
        Journal(
            job="x", path="raw-ranged", validator="v", length=5, watermark=1, disk_size=first,
            algorithm=None, digest_state=None,
        ).save(job.journal)  # fmt: skip
        (volume / "another").write_bytes(bytes(9 * MIB))
        assert size_within_room(job, target, 0) == first
        os.unlink(job.journal)
        assert size_within_room(job, target, 0) < first
