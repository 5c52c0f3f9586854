from __future__ import annotations

import errno
import os
import resource
import stat
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import (
    InternalError,
    QuotaExceeded,
    TargetBusy,
    TargetFull,
    TargetIo,
    TargetPermission,
    TargetUnsuitable,
)
from cdi.api.job import DirectoryTargetSpec, FileTargetSpec
from cdi.target import linux
from cdi.target.buffer import aligned_buffer, is_aligned
from cdi.target.file import DiskFile
from cdi.target.open import open_target

MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "disk.img"


def disk(path) -> DiskFile:
    return DiskFile(FileTargetSpec(path=str(path)))


def test_the_disk_has_its_name_only_when_it_is_committed(path):
    made = disk(path)
    made.resize(MIB)
    made.write(memoryview(b"boot"), 510)
    assert os.listdir(path.parent) == [".disk.img.partial"]
    made.commit()
    made.commit()
    made.close()
    assert os.listdir(path.parent) == ["disk.img"]
    assert path.read_bytes() == bytes(510) + b"boot" + bytes(MIB - 514)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_the_umask_does_not_take_the_group_away(path):
    before = os.umask(0o077)
    try:
        disk(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((path.parent / ".disk.img.partial").stat().st_mode) == 0o660


def test_what_was_written_stays_for_the_next_attempt(path):
    first = disk(path)
    first.resize(MIB)
    first.write(memoryview(b"kept"), 0)
    first.close()
    second = disk(path)
    assert (second.size, second.reads_zero, second.written) == (MIB, True, 0)
    second.commit()
    second.close()
    assert path.read_bytes()[:4] == b"kept"


def test_reset_forgets_all(path):
    made = disk(path)
    made.resize(MIB)
    made.write(memoryview(b"x" * MIB), 0)
    made.preallocate()
    made.reset()
    assert (made.size, made.allocated) == (MIB, 0)
    made.commit()
    made.close()
    assert path.read_bytes() == bytes(MIB)


def test_wipe_removes_the_unfinished_disk_and_keeps_the_former(path):
    path.write_text("former")
    made = disk(path)
    made.resize(10)
    made.wipe()
    made.wipe()
    made.close()
    assert os.listdir(path.parent) == ["disk.img"]
    assert path.read_text() == "former"


def test_wipe_after_commit_removes_the_disk(path):
    made = disk(path)
    made.commit()
    made.wipe()
    made.close()
    assert os.listdir(path.parent) == []


def test_a_second_writer_is_refused(path):
    first = disk(path)
    with pytest.raises(TargetBusy):
        disk(path)
    first.close()
    disk(path).close()


def test_after_a_commit_the_next_disk_is_another_file(path):
    first = disk(path)
    first.resize(4)
    first.commit()
    second = disk(path)
    assert second.size == 0
    second.close()
    first.close()


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 11), (10, 1), (5, 6)])
def test_nothing_is_written_past_the_size(path, offset, length):
    made = disk(path)
    made.resize(10)
    with pytest.raises(InternalError):
        made.write(memoryview(bytes(length)), offset)
    with pytest.raises(InternalError):
        made.zero(offset, length)
    made.close()


def test_a_closed_disk_is_not_used(path):
    made = disk(path)
    made.close()
    made.close()
    with pytest.raises(InternalError):
        made.write(memoryview(b""), 0)


writes = st.lists(
    st.tuples(st.sampled_from(["write", "aligned", "zero"]), st.integers(0, 40_000), st.integers(0, 40_000)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(operations=writes, size=st.integers(1, 50_000), direct=st.booleans(), prepared=st.booleans())
def test_any_writes_leave_what_a_byte_array_would_hold(tmp_path_factory, operations, size, direct, prepared):
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    made = disk(path)
    if not direct and made._io.direct is not None:
        os.close(made._io.direct)
        made._io.direct = None
    made.resize(size)
    if prepared:
        made.preallocate()
    expected = bytearray(size)
    for turn, (kind, offset, length) in enumerate(operations, 1):
        length = max(0, min(length, size - offset))
        if offset > size:
            continue
        if kind == "zero":
            made.zero(offset, length)
            expected[offset : offset + length] = bytes(length)
        else:
            memory = aligned_buffer(max(length, 1))[:length] if kind == "aligned" else memoryview(bytearray(length))
            memory[:] = bytes([turn]) * length
            made.write(memory, offset)
            expected[offset : offset + length] = memory
    made.commit()
    made.close()
    assert path.read_bytes() == bytes(expected)


def test_writers_that_meet_inside_a_block_lose_nothing(path):
    made = disk(path)
    size = 64 * 5000
    made.resize(size)

    def write(part: int) -> None:
        for at in range(part * 5000, size, 4 * 5000):
            made.write(memoryview(bytes([1 + part]) * 5000), at)

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.commit()
    assert made.written == size
    made.close()
    assert path.read_bytes() == b"".join(bytes([1 + n % 4]) * 5000 for n in range(64))


def test_zeroing_frees_blocks_unless_they_were_preallocated(path):
    made = disk(path)
    made.resize(4 * MIB)
    made.write(memoryview(b"x" * (4 * MIB)), 0)
    made.zero(MIB, 2 * MIB)
    made.flush()
    assert made.allocated < 3 * MIB
    made.preallocate()
    assert made.allocated >= 4 * MIB
    made.zero(0, 4 * MIB)
    made.flush()
    assert made.allocated >= 4 * MIB
    made.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_fallocate_zeros_are_written(path, monkeypatch, code):
    def refuse(*_arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(linux, "fallocate", refuse)
    made = disk(path)
    made.resize(4 * MIB + 100)
    made.write(memoryview(b"head"), 0)
    made.write(memoryview(b"middle"), 2 * MIB)
    made.write(memoryview(b"end"), 4 * MIB + 97)
    made.zero(2 * MIB + 1, 2)
    made.preallocate()
    assert made.allocated >= 4 * MIB + 100
    made.commit()
    made.close()
    content = path.read_bytes()
    assert content[:4] == b"head"
    assert content[2 * MIB : 2 * MIB + 6] == b"m\0\0dle"
    assert content[-3:] == b"end"
    assert content.count(0) == len(content) - 4 - 4 - 3


def test_a_file_system_that_cannot_tell_holes_is_preallocated_too(path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.EOPNOTSUPP, "no")

    real = os.lseek
    monkeypatch.setattr(linux, "fallocate", refuse)
    monkeypatch.setattr(
        os, "lseek", lambda fd, at, how: os.fstat(fd).st_size if how == os.SEEK_HOLE else real(fd, at, how)
    )
    made = disk(path)
    made.resize(2 * MIB + 10)
    made.write(memoryview(b"kept"), MIB)
    made.preallocate()
    assert made.allocated >= 2 * MIB + 10
    made.commit()
    made.close()
    assert path.read_bytes() == bytes(MIB) + b"kept" + bytes(MIB + 6)


def test_a_file_system_without_direct_writes_is_written_through_the_cache(path, monkeypatch):
    real = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda name, flags, *rest, **named: (
            (_ for _ in ()).throw(OSError(errno.EINVAL, "no"))
            if flags & os.O_DIRECT
            else real(name, flags, *rest, **named)
        ),
    )
    made = disk(path)
    made.resize(MIB)
    made.write(aligned_buffer(MIB), 0)
    assert made.written == MIB
    made.close()


def test_a_direct_write_that_is_refused_goes_through_the_cache(path, monkeypatch):
    made = disk(path)
    if made._io.direct is None:
        made.close()
        pytest.skip("no direct writes here")
    real, direct = os.pwrite, made._io.direct

    def pwrite(fd, view, offset):
        if fd == direct:
            raise OSError(errno.EINVAL, "no")
        return real(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    made.resize(8192)
    made.write(memoryview(b"x" * 8192), 0)
    made.commit()
    made.close()
    assert path.read_bytes() == b"x" * 8192


def test_only_whole_blocks_in_aligned_memory_go_past_the_cache(path, monkeypatch):
    made = disk(path)
    if made._io.direct is None:
        made.close()
        pytest.skip("no direct writes here")
    real, direct, seen = os.pwrite, made._io.direct, []

    def pwrite(fd, view, offset):
        if fd == direct:
            seen.append((offset, len(view)))
            assert is_aligned(view)
            assert offset % 4096 == len(view) % 4096 == 0
        return real(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    made.resize(4 * MIB)
    made.write(memoryview(b"x" * (2 * MIB)), 1)
    made.write(aligned_buffer(MIB)[100:], 3 * MIB)
    made.write(aligned_buffer(8192), 8192)
    made.close()
    assert sum(length for _, length in seen) == 2 * MIB - 4096 + MIB - 4096 + 8192


def test_short_writes_go_on(path, monkeypatch):
    made = disk(path)
    made.resize(100_000)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: real(made._io.cached, bytes(view[:5000]), offset))
    made.write(memoryview(b"x" * 100_000), 0)
    monkeypatch.undo()
    assert made.written == 100_000
    made.commit()
    made.close()
    assert path.read_bytes() == b"x" * 100_000


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, TargetFull),
        (errno.EDQUOT, QuotaExceeded),
        (errno.EIO, TargetIo),
        (errno.EROFS, TargetPermission),
        (errno.EFBIG, TargetUnsuitable),
    ],
)
def test_every_failure_has_its_class(path, monkeypatch, code, expected):
    made = disk(path)
    made.resize(MIB)

    def refuse(*_arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(expected) as caught:
        made.write(memoryview(b"x"), 0)
    assert caught.value.where == str(path)
    if expected is TargetFull:
        assert "1048576 bytes" in caught.value.what
        assert "available" in caught.value.what
    monkeypatch.undo()
    made.close()


def test_a_disk_larger_than_any_file_may_be_is_refused(path):
    # File systems have different limits (tmpfs has none); a limit of the process gives the same error.
    made = disk(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(TargetUnsuitable):
            made.resize(2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        made.close()


@pytest.mark.parametrize("name", ["disk.img", ".disk.img.partial"])
@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path, name, kind):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    volume = tmp_path / "volume"
    volume.mkdir()
    match kind:
        case "link":
            (volume / name).symlink_to(outside)
        case "directory":
            (volume / name).mkdir()
        case _:
            os.mkfifo(volume / name)
    with pytest.raises(TargetUnsuitable):
        disk(volume / "disk.img")
    assert outside.read_text() == "secret"


@pytest.mark.parametrize("name", ["", "..", "missing/disk.img"])
def test_a_path_that_names_no_place(tmp_path, name):
    with pytest.raises(TargetUnsuitable):
        disk(f"{tmp_path}/{name}")


def test_descriptors_are_not_leaked(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        made = disk(path)
        with pytest.raises(TargetBusy):
            disk(path)
        made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_factory(path, tmp_path):
    made = open_target(FileTargetSpec(path=str(path)))
    assert isinstance(made, DiskFile)
    made.close()
    with pytest.raises(TargetUnsuitable):
        open_target(DirectoryTargetSpec(path=str(tmp_path)))
