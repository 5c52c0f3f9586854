"""Tests of decoding what gzip, pigz, zstd, xz and GNU tar write."""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import subprocess

import pytest

from cdi.api.errors import DecoderLimit
from cdi.api.job import DirectoryTargetSpec
from cdi.codec.open import decoder
from cdi.codec.tar import members
from cdi.codec.xz import XzDecoder
from cdi.target.directory import DirectoryTarget

MIB = 1 << 20


@pytest.fixture(scope="module")
def original() -> bytes:
    made = random.Random(5)
    words = [made.randbytes(made.randrange(2, 12)) for _ in range(3000)]
    text = b"".join(made.choice(words) for _ in range(60_000))
    return text + bytes(MIB) + made.randbytes(MIB // 4) + text[: MIB // 2] + b"odd"


def pack(original: bytes, *command: str) -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip("a packing program is not installed")
    return subprocess.run(command, input=original, capture_output=True, check=True).stdout


def pieces(packed: bytes, step: int = 100_000):
    return (packed[at : at + step] for at in range(0, len(packed), step))


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("gz", ["gzip", "-1"]),
        ("gz", ["gzip", "-9"]),
        ("gz", ["pigz", "-p2", "-b128"]),
        ("gz", ["pigz", "-i", "-p2"]),
        ("zst", ["zstd", "-1", "-T2"]),
        ("zst", ["zstd", "-19", "-T2"]),
        ("zst", ["zstd", "--long=27", "-3"]),
        ("zst", ["zstd", "--no-check", "-B512K", "-T2"]),
        ("zst", ["pzstd", "-p2"]),
        ("xz", ["xz", "-0", "-T1"]),
        ("xz", ["xz", "-9", "-T1"]),
        ("xz", ["xz", "-2", "-T2", "--block-size=256KiB"]),
        ("xz", ["xz", "-1", "-T2", "--block-size=1MiB", "--check=sha256"]),
        ("xz", ["xz", "-1", "-T1", "--block-list=100KiB,200KiB,1MiB", "--check=none"]),
        ("xz", ["xz", "-T2", "--block-list=300KiB,0", "--x86", "--lzma2=preset=1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_the_program_writes_is_read(original, kind, command):
    packed = pack(original, *command)
    assert b"".join(decoder(kind).decode(pieces(packed))) == original
    twice = packed + bytes(4096) + packed
    assert b"".join(decoder(kind).decode(pieces(twice, 7777))) == original * 2


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("in_flight", [MIB, 3 * MIB, 96 * MIB])
def test_xz_gives_the_same_however_it_is_shared_out(original, threads, in_flight):
    packed = pack(original, "xz", "-1", "-T2", "--block-size=300KiB")
    assert b"".join(XzDecoder(threads, in_flight).decode(pieces(packed))) == original


def test_a_zstd_window_above_the_limit_is_refused(original):
    packed = pack(original, "zstd", "--ultra", "--long=31", "-1")
    with pytest.raises(DecoderLimit):
        list(decoder("zst").decode(pieces(packed)))


@pytest.mark.parametrize("layout", ["gnu", "oldgnu", "posix", "ustar", "v7"])
def test_a_tree_that_tar_packed_is_the_same_again(tmp_path, layout):
    source, volume = tmp_path / "source", tmp_path / "volume"
    (source / "deep" / ("n" * 80)).mkdir(parents=True)
    volume.mkdir()
    (source / "deep" / "file").write_bytes(os.urandom(70_000))
    (source / "deep" / ("n" * 80) / "empty").touch(mode=0o600)
    (source / "link").symlink_to("deep/file")
    os.link(source / "deep" / "file", source / "hard")
    if layout in ("gnu", "oldgnu", "posix"):
        (source / ("ü" * 90)).mkdir()
        (source / ("ü" * 90) / ("long" * 40)).write_text("long")
    packed = subprocess.run(
        ["tar", f"--format={layout}", "-C", str(source), "-c", "."], capture_output=True, check=True
    ).stdout
    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))) as target:
        target.unpack(members(pieces(packed, 9999)))
        target.commit()
    same(filecmp.dircmp(source, volume))
    assert os.readlink(volume / "link") == "deep/file"
    assert (volume / "hard").stat().st_ino == (volume / "deep" / "file").stat().st_ino
    for here, directories, files in os.walk(source):
        for name in directories + files:
            one = os.lstat(os.path.join(here, name))
            two = os.lstat(os.path.join(volume, os.path.relpath(here, source), name))
            assert (one.st_mode, one.st_size, int(one.st_mtime)) == (two.st_mode, two.st_size, int(two.st_mtime)), name
    assert (volume / "deep" / "file").read_bytes() == (source / "deep" / "file").read_bytes()


def same(compared: filecmp.dircmp) -> None:
    assert not (compared.left_only or compared.right_only or compared.diff_files or compared.funny_files)
    for below in compared.subdirs.values():
        same(below)


@pytest.mark.parametrize(
    "layout",
    [
        "--format=gnu",
        "--format=posix --sparse-version=0.0",
        "--format=posix --sparse-version=0.1",
        "--format=posix --sparse-version=1.0",
    ],
)
@pytest.mark.parametrize("holes", [3, 40])
def test_sparse_files_of_every_version(tmp_path, layout, holes):
    path = tmp_path / "disk.img"
    made = random.Random(holes)
    with open(path, "wb") as file:
        for at in range(holes):
            file.seek(at * MIB + 8192 * (at % 3))
            file.write(made.randbytes(5000))
        file.truncate(holes * MIB + 12345)
    packed = subprocess.run(
        ["tar", *layout.split(), "--sparse", "-C", str(tmp_path), "-c", "disk.img"], capture_output=True, check=True
    ).stdout
    assert len(packed) < MIB
    (found,) = [(m.name, b"".join(m.read())) for m in members(pieces(packed, 4321))]
    assert found[0] == "disk.img"
    assert found[1] == path.read_bytes()
    volume = tmp_path / "volume"
    volume.mkdir()
    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))) as target:
        target.unpack(members(pieces(packed)))
        target.commit()
    assert filecmp.cmp(path, volume / "disk.img", shallow=False)
    assert (volume / "disk.img").stat().st_blocks * 512 < 2 * MIB
