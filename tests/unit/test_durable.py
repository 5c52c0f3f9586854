"""Small files are replaced whole, and locks are seen by others."""

from __future__ import annotations

import os
import stat

import pytest

from cdi import durable

LONG = "ä".encode() * 500_000


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_long_text_is_written_whole_and_nothing_else_is_left(tmp_path, alone, lasting):
    path = tmp_path / "file"
    durable.write(path, LONG, alone=alone, lasting=lasting)
    durable.write(str(path), LONG + b"!", alone=alone, lasting=lasting)
    assert path.read_bytes() == LONG + b"!"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("alone", [False, True])
def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path, alone, monkeypatch):
    path = tmp_path / "file"
    durable.write(path, b"old")

    def fail(_old, _new):
        raise OSError(28, "full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        durable.write(path, b"new", alone=alone)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / "file.new").write_bytes(b"half of something longer")
    durable.write(tmp_path / "file", b"whole", alone=True)
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
    durable.write(tmp_path / "file", b"x", lasting=False)
    assert deeds == ["name"]
    durable.write(tmp_path / "file", b"x")
    assert deeds == ["name", "content", "name", "directory"]


def test_a_file_without_a_directory_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    durable.write("file", b"x")
    assert durable.read("file") == b"x"
    assert durable.read("other") is None


def test_one_holds_a_lock(tmp_path):
    path = tmp_path / "lock"
    assert not durable.held(path)
    with durable.locked(path) as first, durable.locked(path, wait=False) as second:
        assert first is not None
        assert second is None
        assert durable.held(path)
    assert not durable.held(path)
