"""Tests of real block devices of both sector sizes and real file systems, on loop devices."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from cdi.api.errors import InternalError, TargetBusy, TargetFull, TargetTooSmall, TargetUnsuitable
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec
from cdi.api.overhead import parse_overhead, usable
from cdi.target import linux
from cdi.target.block import BlockDevice
from cdi.target.buffer import aligned_buffer
from cdi.target.directory import DirectoryTarget
from cdi.target.file import DiskFile
from cdi.target.open import open_target

MIB = 1 << 20
GIB = 1 << 30

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="this kernel has no loop devices"),
]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def loop(backing: Path, size: int, sector: int) -> Iterator[str]:
    with open(backing, "wb") as file:
        file.truncate(size)
    device = run("losetup", "--find", "--show", "--sector-size", str(sector), str(backing))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@pytest.fixture(params=[512, 4096])
def device(tmp_path, request):
    with loop(tmp_path / "backing", 24 * MIB, request.param) as name:
        yield name


@contextmanager
def mounted(tmp_path: Path, kind: str, size: int) -> Iterator[Path]:
    with ExitStack() as stack:
        place = tmp_path / "mounted"
        place.mkdir()
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
        else:
            name = stack.enter_context(loop(tmp_path / "fs", size, 512))
            # Kubernetes reserves no blocks for root either.
            run(f"mkfs.{kind}", *(["-q", "-F", "-m", "0"] if kind == "ext4" else ["-q", "-f"]), name)
            run("mount", name, str(place))
        stack.callback(run, "umount", str(place))
        yield place


def open_device(name: str, *, known_zero: bool = False) -> BlockDevice:
    target = open_target(BlockTargetSpec(path=name, known_zero=known_zero))
    assert isinstance(target, BlockDevice)
    return target


def content(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def test_any_writes_leave_what_a_byte_array_would_hold(device):
    made = random.Random(7)
    target = open_device(device)
    assert target.capacity == 24 * MIB
    assert target.reads_zero is False
    size = 20 * MIB + 512
    target.resize(size)
    expected = bytearray(content(device))
    for turn in range(1, 60):
        offset = made.randrange(size)
        length = made.choice([made.randrange(5000), made.randrange(3 * MIB)])
        length = min(length, size - offset)
        match made.randrange(3):
            case 0:
                target.zero(offset, length)
                expected[offset : offset + length] = bytes(length)
            case 1 if length:
                memory = aligned_buffer(length)
                memory[:] = bytes([turn]) * length
                target.write(memory, offset)
                expected[offset : offset + length] = memory
            case _:
                target.write(memoryview(bytes([turn]) * length), offset)
                expected[offset : offset + length] = bytes([turn]) * length
    target.commit()
    assert content(device) == bytes(expected)
    target.close()
    assert content(device) == bytes(expected)


@pytest.mark.parametrize("way", ["punch", "zero range", "ioctl", "write"])
def test_zeroing_works_whatever_the_device_offers(device, monkeypatch, way):
    real_fallocate, real_zero_out = linux.fallocate, linux.zero_out
    calls = []

    def fallocate(fd, mode, offset, length):
        if way == "punch" or (way == "zero range" and mode & linux.ZERO_RANGE):
            calls.append(mode)
            return real_fallocate(fd, mode, offset, length)
        raise OSError(95, "not supported")

    def zero_out(fd, offset, length):
        if way == "write":
            raise OSError(25, "not supported")
        calls.append("ioctl")
        return real_zero_out(fd, offset, length)

    monkeypatch.setattr(linux, "fallocate", fallocate)
    monkeypatch.setattr(linux, "zero_out", zero_out)
    target = open_device(device)
    target.write(memoryview(b"x" * (24 * MIB)), 0)
    target.zero(4096 + 7, 5 * MIB)
    target.flush()
    target.close()
    found = content(device)
    assert found == b"x" * 4103 + bytes(5 * MIB) + b"x" * (24 * MIB - 4103 - 5 * MIB)
    assert bool(calls) == (way != "write")


def test_wipe_leaves_nothing(device):
    target = open_device(device)
    target.write(memoryview(b"secret!!" * (3 * MIB)), 0)
    target.flush()
    target.wipe()
    target.close()
    assert not any(content(device))


def test_wipe_leaves_what_lies_behind_the_disk(device):
    target = open_device(device)
    target.write(memoryview(b"x" * (24 * MIB)), 0)
    target.resize(8 * MIB)
    target.wipe()
    assert target.reads_zero is False
    target.close()
    assert content(device) == bytes(8 * MIB) + b"x" * (16 * MIB)


def test_reset_forgets_where_the_device_can(device):
    target = open_device(device)
    target.write(memoryview(b"x" * (24 * MIB)), 0)
    target.reset()
    if target.reads_zero:
        assert not any(content(device))
    target.close()


def test_reset_of_a_device_that_cannot_says_so_and_removes_both_ends(device, monkeypatch):
    def refuse(*_arguments):
        raise OSError(95, "not supported")

    monkeypatch.setattr(linux, "fallocate", refuse)
    target = open_device(device, known_zero=True)
    target.write(memoryview(b"x" * (24 * MIB)), 0)
    target.reset()
    assert target.reads_zero is False
    target.flush()
    target.close()
    assert content(device) == bytes(MIB) + b"x" * (22 * MIB) + bytes(MIB)


def test_a_disk_that_does_not_fit_names_both_sizes(device):
    target = open_device(device)
    with pytest.raises(TargetTooSmall, match=rf"{25 * MIB}.*{24 * MIB}"):
        target.resize(25 * MIB)
    with pytest.raises(InternalError):
        target.write(memoryview(b"xx"), 24 * MIB - 1)
    target.close()


def test_a_device_in_use_is_busy(device, tmp_path):
    first = open_device(device)
    with pytest.raises(TargetBusy):
        open_device(device)
    first.close()
    place = tmp_path / "place"
    place.mkdir()
    run("mkfs.ext4", "-q", "-F", device)
    run("mount", device, str(place))
    try:
        with pytest.raises(TargetBusy):
            open_device(device)
    finally:
        run("umount", str(place))
    open_device(device).close()


def test_what_is_no_device(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "missing"):
        with pytest.raises(TargetUnsuitable):
            open_device(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
def test_a_disk_on_a_real_file_system(tmp_path, kind):
    made = random.Random(1)
    # mkfs.xfs makes no file system smaller than 300 MB.
    with mounted(tmp_path, kind, 320 * MIB if kind == "xfs" else 64 * MIB) as place:
        target = DiskFile(FileTargetSpec(path=str(place / "disk.img")))
        if kind != "tmpfs":
            assert target._io.direct is not None
        size = 12 * MIB + 1234
        target.resize(size)
        expected = bytearray(size)
        for _ in range(40):
            offset = made.randrange(size)
            length = min(made.randrange(2 * MIB), size - offset)
            piece = made.randbytes(length)
            target.write(memoryview(piece), offset)
            expected[offset : offset + length] = piece
            offset = made.randrange(size)
            length = min(made.randrange(MIB), size - offset)
            target.zero(offset, length)
            expected[offset : offset + length] = bytes(length)
        target.preallocate()
        assert target.allocated >= size // 4096 * 4096
        target.commit()
        target.close()
        assert (place / "disk.img").read_bytes() == bytes(expected)


@pytest.mark.parametrize(("kind", "size"), [("ext4", 64 * MIB), ("ext4", 256 * MIB), ("xfs", 300 * MIB), ("ext4", GIB)])
def test_a_file_system_that_keeps_more_than_was_reckoned_names_the_overhead(tmp_path, kind, size):
    """The overhead in the message leaves room for all blocks of the disk; 0.05 less does not."""
    with mounted(tmp_path, kind, size) as place:
        target = DiskFile(FileTargetSpec(path=str(place / "disk.img"), volume=size))
        (place / ".cdi").write_bytes(b"x" * 4096)
        target.resize(usable(size))
        with pytest.raises(TargetFull, match="or disable preallocation") as caught:
            target.preallocate()
        named = re.search(r"filesystemOverhead of the volume's storage class to (0\.\d+) or more", caught.value.remedy)
        assert named is not None
        overhead = parse_overhead(named[1])
        target.resize(usable(size, overhead - Fraction(5, 100)))
        target.reset()
        with pytest.raises(TargetFull):
            target.preallocate()
        target.resize(usable(size, overhead))
        target.reset()
        target.preallocate()
        (place / ".cdi").write_bytes(b"x" * 65536)
        target.commit()
        target.close()


def test_room_that_others_take_is_to_be_freed(tmp_path):
    with mounted(tmp_path, "ext4", 64 * MIB) as place:
        (place / "theirs").write_bytes(b"x" * 16 * MIB)
        target = DiskFile(FileTargetSpec(path=str(place / "disk.img"), volume=64 * MIB))
        target.resize(56 * MIB)
        with pytest.raises(TargetFull, match="free space"):
            target.preallocate()
        target.close()


def test_room_that_others_have_too_is_to_be_freed(tmp_path):
    with mounted(tmp_path, "ext4", 64 * MIB) as place:
        for volume in (None, 32 * MIB):
            target = DiskFile(FileTargetSpec(path=str(place / "disk.img"), volume=volume))
            target.resize(80 * MIB)
            with pytest.raises(TargetFull, match="free space"):
                target.preallocate()
            target.wipe()
            target.close()


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_full_volume_says_what_is_wanted_and_what_is_there(tmp_path, kind):
    with mounted(tmp_path, kind, 16 * MIB) as place:
        target = DiskFile(FileTargetSpec(path=str(place / "disk.img")))
        target.resize(64 * MIB)
        block = aligned_buffer(MIB)
        block[:] = b"x" * MIB
        with pytest.raises(TargetFull, match=rf"{64 * MIB} bytes.*available"):
            for at in range(0, 64 * MIB, MIB):
                target.write(block, at)
        target.reset()
        with pytest.raises(TargetFull):
            target.preallocate()
        target.reset()
        target.write(block, 0)
        target.wipe()
        target.close()
        assert set(os.listdir(place)) <= {"lost+found"}


def test_an_archive_on_a_new_file_system_tolerates_its_lost_and_found(tmp_path):
    source = tmp_path / "source"
    (source / "lost+found").mkdir(parents=True)
    (source / "file").write_text("content")
    packed = subprocess.run(["tar", "-C", str(source), "-c", "."], capture_output=True, check=True).stdout
    from cdi.codec.tar import members

    with mounted(tmp_path, "ext4", 16 * MIB) as place:
        with DirectoryTarget(DirectoryTargetSpec(path=str(place))) as target:
            target.unpack(members(iter([packed])))
            target.commit()
        assert sorted(os.listdir(place)) == ["file", "lost+found"]
        (source / "big").write_bytes(os.urandom(20 * MIB))
        with subprocess.Popen(["tar", "-C", str(source), "-c", "."], stdout=subprocess.PIPE) as tar:
            with DirectoryTarget(DirectoryTargetSpec(path=str(place))) as target:
                with pytest.raises(TargetFull, match="available"):
                    target.unpack(members(iter(lambda: tar.stdout.read(65536), b"")))
                target.wipe()
            tar.stdout.read()
        assert sorted(os.listdir(place)) == ["file", "lost+found"]
