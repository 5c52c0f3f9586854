from __future__ import annotations

import errno
import fcntl
import os
import random
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi import atomic_file
from cdi.api.errors import (
    Interrupted,
    InvalidManifest,
    SourceNotFound,
    TargetBusy,
    TargetFull,
    TargetIo,
    TargetTooSmall,
    TargetUnsuitable,
)
from cdi.api.job import Outcome, Progress
from cdi.local import clone
from cdi.local.clone import Cloner, main
from cdi.local.home import WorkerDirectory
from cdi.reconcile.actions import CloneJob

MIB = 1 << 20


@pytest.fixture
def place(tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    return tmp_path


def job(place, **kw):
    return CloneJob(id="1", source=str(place / "source" / "disk.img"), target=str(place / "target" / "disk.img"), **kw)


def sparse(path, size=8 * MIB, pieces=((MIB, b"a" * 5000), (5 * MIB, b"b" * MIB))):
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)


def allocated(path):
    return path.stat().st_blocks * 512


def refuse(name, number):
    def refuses(*args):
        raise OSError(number, os.strerror(number))

    return name, refuses


WAYS = [[], [refuse("copy_file_range", errno.EXDEV)], [refuse("copy_file_range", errno.ENOSYS)]]


@pytest.mark.parametrize("refused", WAYS, ids=["kernel", "other file system", "old kernel"])
def test_a_clone_has_the_same_bytes_and_the_same_holes(place, monkeypatch, refused):
    for name, function in refused:
        monkeypatch.setattr(os, name, function)
    sparse(place / "source" / "disk.img")
    outcome = Cloner(job(place), lambda p: None).run()
    target = place / "target" / "disk.img"
    assert target.read_bytes() == (place / "source" / "disk.img").read_bytes()
    assert allocated(target) <= 2 * MIB
    assert stat.S_IMODE(target.stat().st_mode) == 0o660
    assert (outcome.failure, outcome.disk_size) == (None, 8 * MIB)
    assert os.listdir(place / "target") == ["disk.img"]


def test_a_file_system_without_holes_is_copied_whole(place, monkeypatch):
    sparse(place / "source" / "disk.img")

    def seek(descriptor, offset, how):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "lseek", seek)
    Cloner(job(place), lambda p: None).run()
    assert (place / "target" / "disk.img").read_bytes() == (place / "source" / "disk.img").read_bytes()


def test_a_file_system_that_shares_blocks_is_asked_first(place, monkeypatch):
    sparse(place / "source" / "disk.img")

    def share(output, request, source):
        assert request == 0x40049409
        size = os.fstat(source).st_size
        os.pwrite(output, os.pread(source, size, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", share)
    outcome = Cloner(job(place), lambda p: None).run()
    assert outcome.path == "reflink"
    assert outcome.written == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32), size=st.integers(0, 3 * MIB), more=st.integers(0, MIB))
def test_any_layout_is_cloned(tmp_path_factory, seed, size, more):
    place = tmp_path_factory.mktemp("clone")
    for name in ("source", "target"):
        (place / name).mkdir()
    chance = random.Random(seed)
    pieces = [
        (chance.randrange(size or 1), chance.randbytes(chance.randrange(1, 100_000)))
        for _ in range(chance.randrange(5))
    ]
    sparse(place / "source" / "disk.img", size, [(o, d[: max(0, size - o)]) for o, d in pieces])
    Cloner(job(place, size=size + more), lambda p: None).run()
    assert (place / "target" / "disk.img").read_bytes() == (place / "source" / "disk.img").read_bytes() + bytes(more)


def test_a_larger_target_is_grown_and_a_smaller_one_refused(place):
    sparse(place / "source" / "disk.img")
    Cloner(job(place, size=20 * MIB), lambda p: None).run()
    assert (place / "target" / "disk.img").stat().st_size == 20 * MIB
    with pytest.raises(TargetTooSmall, match=f"{8 * MIB}.*{MIB}"):
        Cloner(job(place, size=MIB), lambda p: None).run()
    assert (place / "target" / "disk.img").stat().st_size == 20 * MIB


def test_preallocation_leaves_no_hole(place):
    sparse(place / "source" / "disk.img")
    outcome = Cloner(job(place, size=10 * MIB, preallocation=True), lambda p: None).run()
    target = place / "target" / "disk.img"
    assert outcome.preallocated
    assert allocated(target) >= 10 * MIB
    assert target.read_bytes()[: 8 * MIB] == (place / "source" / "disk.img").read_bytes()


def test_what_is_no_disk_is_refused(place):
    with pytest.raises(SourceNotFound):
        Cloner(job(place), lambda p: None).run()
    os.mkfifo(place / "source" / "disk.img")
    with pytest.raises(SourceNotFound):
        Cloner(job(place), lambda p: None).run()
    (place / "source" / "disk.img").unlink()
    (place / "source" / "disk.img").symlink_to("/etc/passwd")
    with pytest.raises(SourceNotFound):
        Cloner(job(place), lambda p: None).run()
    assert os.listdir(place / "target") == []


def test_a_full_file_system_leaves_nothing(place, monkeypatch):
    sparse(place / "source" / "disk.img")
    monkeypatch.setattr(*((os,) + refuse("copy_file_range", errno.ENOSPC)))
    with pytest.raises(TargetFull):
        Cloner(job(place), lambda p: None).run()
    assert os.listdir(place / "target") == []


def test_a_clone_can_be_stopped(place):
    sparse(place / "source" / "disk.img")
    cloner = Cloner(job(place), lambda p: None)
    cloner.cancel()
    with pytest.raises(Interrupted):
        cloner.run()
    assert os.listdir(place / "target") == []


def test_a_tree_is_cloned_with_its_links_modes_and_times(place):
    source, target = place / "source", place / "target"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_bytes(b"content")
    os.link(source / "deep" / "er" / "file", source / "hard")
    (source / "soft").symlink_to("/etc/passwd")
    (source / "deep" / "er" / "file").chmod(0o640)
    os.utime(source / "deep" / "er" / "file", (1, 2))
    (source / "deep").chmod(0o500)
    (target / "left").write_text("from an attempt before")
    outcome = Cloner(CloneJob(id="1", source=str(source), target=str(target), content="archive"), lambda p: None).run()
    assert outcome.format == "archive"
    assert sorted(os.listdir(target)) == ["deep", "hard", "soft"]
    file = target / "deep" / "er" / "file"
    assert file.read_bytes() == b"content"
    assert file.stat().st_ino == (target / "hard").stat().st_ino
    assert file.stat().st_mtime == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert stat.S_IMODE((target / "deep").stat().st_mode) == 0o500
    assert os.readlink(target / "soft") == "/etc/passwd"


def test_a_tree_with_a_device_or_pipe_is_refused(place):
    os.mkfifo(place / "source" / "pipe")
    with pytest.raises(TargetUnsuitable):
        Cloner(
            CloneJob(id="1", source=str(place / "source"), target=str(place / "target"), content="archive"),
            lambda p: None,
        ).run()


def test_the_process_keeps_the_workers_protocol(place):
    directory = WorkerDirectory(place)
    directory.job.write_text(job(place).to_json())
    arguments = ["run", str(directory.job), "--status-dir", str(place)]
    assert main(arguments) == SourceNotFound.exit_status
    assert Outcome.from_json(directory.outcome.read_bytes()).failure.code == "SourceNotFound"
    sparse(place / "source" / "disk.img")
    assert main(arguments) == 0
    outcome = Outcome.from_json(directory.outcome.read_bytes())
    assert (outcome.failure, outcome.id) == (None, "1")
    assert Progress.from_json(directory.progress.read_bytes()).phase == "done"
    with atomic_file.locked(directory.lock):
        assert main(arguments) == TargetBusy.exit_status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"id":"1"}',
        '{"id":"1","source":"a","target":"b","more":1}',
        '{"id":"1","source":"a","target":"b","size":"x"}',
    ],
)
def test_a_job_that_is_none_is_refused(place, text):
    directory = WorkerDirectory(place)
    directory.job.write_text(text)
    assert main(["run", str(directory.job), "--status-dir", str(place)]) == InvalidManifest.exit_status
    assert main(["go"]) == InvalidManifest.exit_status


def test_the_source_may_not_change_meanwhile(place, monkeypatch):
    source = place / "source" / "disk.img"
    sparse(source)
    really = clone._extents

    def shrink(descriptor, length):
        os.truncate(source, 2 * MIB)
        yield from really(descriptor, length)
        yield 3 * MIB, 4 * MIB

    monkeypatch.setattr(clone, "_extents", shrink)
    with pytest.raises(TargetIo):
        Cloner(job(place), lambda p: None).run()
    assert os.listdir(place / "target") == []
