"""Tests that small files are replaced atomically, and that locks are visible to other processes."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from cdi import atomic_file
from cdi.api.errors import TargetFull, TargetIo, TargetPermission, TargetUnsuitable

LONG = "ä".encode() * 500_000


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_long_text_is_written_whole_and_nothing_else_is_left(tmp_path, alone, lasting):
    path = tmp_path / "file"
    atomic_file.write(path, LONG, single_writer=alone, fsync=lasting)
    atomic_file.write(str(path), LONG + b"!", single_writer=alone, fsync=lasting)
    assert path.read_bytes() == LONG + b"!"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("alone", [False, True])
def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path, alone, monkeypatch):
    path = tmp_path / "file"
    atomic_file.write(path, b"old")

    def fail(_old, _new):
        raise OSError(28, "full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        atomic_file.write(path, b"new", single_writer=alone)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / "file.new").write_bytes(b"half of something longer")
    atomic_file.write(tmp_path / "file", b"whole", single_writer=True)
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lasting_write_is_flushed_before_it_has_its_name_and_its_name_after(tmp_path, monkeypatch):
    deeds = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor):
        deeds.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        flush(descriptor)

    def replace(old, new):
        deeds.append("name")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    atomic_file.write(tmp_path / "file", b"x", fsync=False)
    assert deeds == ["name"]
    atomic_file.write(tmp_path / "file", b"x")
    assert deeds == ["name", "content", "name", "directory"]


def test_a_file_without_a_directory_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atomic_file.write("file", b"x")
    assert atomic_file.read("file") == b"x"
    assert atomic_file.read("other") is None


def test_one_holds_a_lock(tmp_path):
    path = tmp_path / "lock"
    assert not atomic_file.is_locked(path)
    with atomic_file.locked(path) as first, atomic_file.locked(path, wait=False) as second:
        assert first is not None
        assert second is None
        assert atomic_file.is_locked(path)
    assert not atomic_file.is_locked(path)


def test_space_that_was_set_aside_is_what_the_next_write_takes(tmp_path):
    atomic_file.reserve(tmp_path / "file", 64 << 10)
    (kept,) = tmp_path.iterdir()
    before = kept.stat()
    assert before.st_blocks * 512 >= 64 << 10
    atomic_file.write(tmp_path / "file", b"content", single_writer=True)
    (written,) = tmp_path.iterdir()
    assert written.stat().st_ino == before.st_ino
    assert written.read_bytes() == b"content"


def test_nothing_is_left_of_space_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match=r"No space left|too large"):
        atomic_file.reserve(tmp_path / "file", 1 << 60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (
            errno.ENOSPC,
            TargetFull,
            "free space in the file system of /x, or set Y; the work then continues automatically",
        ),
        (
            errno.EDQUOT,
            TargetFull,
            "free space in the file system of /x, or set Y; the work then continues automatically",
        ),
        (errno.EACCES, TargetPermission, f"grant write permission to user {os.geteuid()}, or set Y"),
        (errno.EPERM, TargetPermission, f"grant write permission to user {os.geteuid()}, or set Y"),
        (errno.EROFS, TargetPermission, "mount the file system writable, or set Y"),
        (errno.ENOTDIR, TargetUnsuitable, "check this path, or set Y"),
        (errno.ELOOP, TargetUnsuitable, "check this path, or set Y"),
        (errno.EIO, TargetIo, TargetIo.default_remedy),
    ],
)
def test_what_the_kernel_says_has_a_code_and_a_remedy(number, kind, remedy):
    with pytest.raises(kind) as caught, atomic_file.mapped("the log", "/x", elsewhere="set Y"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is kind
    assert "the log" in caught.value.what
    assert os.strerror(number) in caught.value.what
    assert (caught.value.where, caught.value.remedy) == ("/x", remedy)
