"""Clones of directory trees."""

import os
import random
import socket
import subprocess
import threading
import time

import pytest

from cdi.api.job import DirectoryTargetSpec, FileTargetSpec, Policy
from tests.integration.clone.pair import clone

MIB = 1 << 20


def build(root):
    made = random.Random(1)
    (root / "plain").mkdir(parents=True)
    (root / "plain/empty").write_bytes(b"")
    (root / "plain/large").write_bytes(made.randbytes(3 * MIB + 77))
    (root / "plain/text").write_bytes(b"a line\n" * 500_000)
    (root / "plain/executable").write_bytes(b"#!/bin/sh\n")
    (root / "plain/executable").chmod(0o755)
    (root / ("long" * 50) / ("name" * 50)).mkdir(parents=True)
    (root / ("long" * 50) / ("name" * 50) / "fïle").write_bytes(b"x" * 511)
    with open(os.fsencode(root) + b"/not \xff utf-8", "wb") as file:
        file.write(b"y" * 512)
    for name, tail in (("sparse", b"end"), ("sparse-to-the-end", b""), ("only-a-hole", None)):
        with open(root / name, "wb") as file:
            file.truncate(50 * MIB)
            if tail is not None:
                file.seek(20 * MIB)
                file.write(b"middle")
                file.seek(50 * MIB - len(tail))
                file.write(tail)
    os.symlink("plain/large", root / "link")
    os.symlink("nowhere", root / "plain/dangling")
    os.link(root / "plain/large", root / "hard")
    (root / "read-only").mkdir()
    (root / "read-only/inside").write_bytes(b"in")
    (root / "read-only").chmod(0o555)
    (root / "lost+found").mkdir()
    for path in (root / "plain/text", root / "plain", root / "read-only"):
        os.utime(path, (1_000_000_000.5, 1_234_567_890.25))
    return root


def tree(root):
    """Return all transferred properties of each entry."""
    found = {}
    inodes = {}
    for directory, directories, files in os.walk(os.fsencode(root)):
        for name in [*directories, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, os.fsencode(root))
            if relative == b"lost+found":
                continue
            content = b""
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = file.read()
            same = inodes.setdefault(status.st_ino, relative) if status.st_nlink > 1 and os.path.isfile(path) else b""
            found[relative] = (status.st_mode, int(status.st_mtime), content, bool(same))
    return found


@pytest.fixture
def source(tmp_path):
    return build(tmp_path / "source")


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/lost+found").mkdir()
    return DirectoryTargetSpec(path=str(tmp_path / "target"))


def test_a_tree_is_the_same_there(certificates, source, target):
    filled, sent = clone(certificates, source, target, content_type="archive")
    assert filled.failure is None
    assert sent.failure is None
    assert tree(target.path) == tree(source)
    assert os.stat(f"{target.path}/hard").st_ino == os.stat(f"{target.path}/plain/large").st_ino
    # Of 150 MiB in sparse files, almost nothing was sent and nothing stored.
    assert sent.written < 8 * MIB
    assert os.stat(f"{target.path}/sparse").st_blocks < 100
    assert filled.format == "archive"
    assert filled.digest == sent.digest
    assert not os.path.exists(f"{target.path}/.cdi-unpack.partial")


def test_what_is_no_file_is_refused_before_anything_is_sent(tmp_path, certificates, source, target):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        filled, sent = clone(certificates, source, target, content_type="archive", patience=1.0)
    assert sent.failure.code == "SourceNotSupported"
    assert filled.failure.code == "PeerUnreachable"
    assert os.listdir(target.path) == ["lost+found"]


def test_a_file_that_is_written_to_begins_the_tree_again(certificates, source, target):
    # Larger than the readahead.
    (source / "plain/long").write_bytes(random.Random(2).randbytes(30 * MIB))

    def write_meanwhile(control):
        def write():
            while control.meter.done < 6 * MIB and control.meter.phase != "done":
                time.sleep(0.005)
            with open(source / "plain/long", "ab") as file:
                file.write(b"more")

        threading.Thread(target=write, daemon=True).start()

    filled, sent = clone(
        certificates,
        source,
        target,
        content_type="archive",
        from_fields={"policy": Policy(bandwidth=10 * MIB)},
        watch=write_meanwhile,
    )
    assert filled.failure is None
    assert sent.warnings
    assert tree(target.path) == tree(source)


def test_an_archive_wants_a_directory(tmp_path, certificates, source):
    filled, _ = clone(
        certificates, source, FileTargetSpec(path=str(tmp_path / "disk.img")), content_type="archive", patience=0.5
    )
    assert filled.failure.code == "TargetUnsuitable"


def test_a_volume_that_is_full(tmp_path, certificates, source):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    try:
        target = DirectoryTargetSpec(path=str(place))
        filled, sent = clone(certificates, source, target, content_type="archive")
        assert filled.failure.code == sent.failure.code == "TargetFull"
        assert os.listdir(place) == []
    finally:
        subprocess.run(["umount", place], check=True)
