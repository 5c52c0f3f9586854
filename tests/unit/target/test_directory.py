"""Tests of archives extracted into directories: everything or nothing, and nothing outside."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import ArchiveUnsafe, CdiError, ContentTruncated, TargetBusy, TargetFull, TargetUnsuitable
from cdi.api.job import DirectoryTargetSpec
from cdi.target import directory
from cdi.target.directory import STAGING, DirectoryTarget


@dataclass
class Made:
    """An archive member without an archive."""

    name: str
    kind: str = "file"
    content: bytes = b""
    link: str = ""
    mode: int = 0o644
    mtime: float = 1_000_000_000.0
    extra: int = 0

    @property
    def size(self) -> int:
        return len(self.content) + self.extra

    @property
    def stored(self) -> int:
        return len(self.content)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        if self.content:
            yield 0, self.content


def folder(name: str, mode: int = 0o755) -> Made:
    return Made(name, "directory", mode=mode)


def link(name: str, target: str) -> Made:
    return Made(name, "symlink", link=target)


def hard(name: str, target: str) -> Made:
    return Made(name, "hardlink", link=target)


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "around" / "volume"
    path.mkdir(parents=True)
    (tmp_path / "around" / "secret").write_text("secret")
    yield path
    assert sorted(os.listdir(tmp_path / "around")) == ["secret", "volume"]
    assert (tmp_path / "around" / "secret").read_text() == "secret"


def unpack(volume: Path, *members: Made) -> None:
    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))) as target:
        try:
            target.unpack(members)
            target.commit()
        except CdiError:
            target.wipe()
            raise


def test_a_tree_with_modes_times_and_links(volume):
    unpack(
        volume,
        folder("./"),
        folder("etc/", 0o750),
        Made("etc/passwd", content=b"root", mode=0o4755),
        folder("locked", 0o500),
        Made("locked/file", content=b"inner", mode=0o400),
        link("etc/alias", "../locked/file"),
        link("dangling", "etc/nothing"),
        hard("again", "etc/passwd"),
        Made("./implied/parent/file", content=b"x"),
    )
    assert sorted(os.listdir(volume)) == ["again", "dangling", "etc", "implied", "locked"]
    passwd = (volume / "etc/passwd").stat()
    assert (stat.S_IMODE(passwd.st_mode), passwd.st_mtime, passwd.st_nlink) == (0o755, 1_000_000_000, 2)
    assert (volume / "etc/alias").read_text() == "inner"
    assert stat.S_IMODE((volume / "etc").stat().st_mode) == 0o750
    assert stat.S_IMODE((volume / "locked").stat().st_mode) == 0o500
    assert (volume / "locked").stat().st_mtime == (volume / "etc").stat().st_mtime == 1_000_000_000
    assert os.readlink(volume / "dangling") == "etc/nothing"


@pytest.mark.parametrize(
    "members",
    [
        [Made("/etc/passwd")],
        [Made("../secret")],
        [Made("a/../../secret")],
        [Made("a/..")],
        [Made("..")],
        [folder("..")],
        [link("out", "/etc/passwd")],
        [link("out", "..")],
        [link("out", "../secret")],
        [link("d/out", "../../secret")],
        [link("out", "a/../../secret")],
        [link("here", "."), link("out", "here/../secret")],
        [folder("d"), link("up", "d/.."), link("out", "up/../secret")],
        [link("out", "late/../secret"), link("late", ".")],
        [link("deep", "d/e"), link("out", "deep/../../../secret"), folder("d/e")],
        [link("out", ""), Made("x")],
        [link("d", "."), Made("d/file")],
        [folder("real"), link("d", "real"), Made("d/file")],
        [folder("d/e/f"), link("d/e/f/l", "../../../x"), hard("l", "d/e/f/l")],
        [hard("h", "../secret")],
        [hard("h", "/etc/passwd")],
        [hard("h", "missing")],
        [folder("d"), hard("h", "d")],
        [hard("h", "")],
        [link("d", "."), Made("file"), hard("h", "d/file")],
        [Made("tty", "character")],
        [Made("disk", "block")],
        [Made("pipe", "fifo")],
        [Made("odd", "other")],
        [Made("")],
        [Made("file"), Made("file/below")],
        [Made("file"), folder("file")],
        [Made("d/file"), Made("d")],
        [Made("d/file"), link("d", "x")],
        [Made("n" * 256)],
        [Made("d/" * 300 + "x")],
        [Made("a\0b")],
        [Made(f"{STAGING}/x")],
        [link("loop", "loop/../x")],
    ],
)
def test_hostile_members_are_refused_and_leave_nothing(volume, members):
    (volume / "before").write_text("kept")
    with pytest.raises(ArchiveUnsafe):
        unpack(volume, Made("harmless", content=b"x"), *members)
    assert os.listdir(volume) == ["before"]


@pytest.mark.parametrize(
    "members",
    [
        [folder("d"), link("d/up", "../x")],
        [folder("a"), folder("b"), link("l", "a/../b")],
        [link("l", "missing/../b")],
        [link("self", ".")],
        [link("d/here", "./../d")],
        [link("a", "b"), link("b", "a")],
        [Made("dup", content=b"1"), Made("dup", content=b"2")],
        [Made("dup"), link("dup", "x")],
        [link("dup", "x"), Made("dup")],
        [folder("dup"), folder("dup")],
        [folder("dup"), Made("dup")],
        [folder("dup"), Made("other"), link("dup", "other"), Made("third")],
        [Made("f"), hard("f", "f")],
        [Made("a..b"), Made("..."), Made(".hidden")],
        [Made("d//e///f")],
    ],
)
def test_unusual_members_that_stay_inside_are_taken(volume, members):
    unpack(volume, *members)


def test_a_later_duplicate_wins_and_other_names_keep_the_former(volume):
    unpack(volume, Made("f", content=b"old"), hard("kept", "f"), Made("f", content=b"new"))
    assert (volume / "f").read_bytes() == b"new"
    assert (volume / "kept").read_bytes() == b"old"


def test_a_member_below_a_directory_that_was_replaced_is_refused(volume):
    with pytest.raises(ArchiveUnsafe):
        unpack(
            volume, folder("d"), Made("d/x", content=b"1"), Made("e"), folder("f"), Made("f", content=b"2"), Made("f/x")
        )


def test_a_hard_link_to_a_link_becomes_a_link(volume):
    unpack(volume, Made("a", content=b"x"), link("l", "a"), hard("again", "l"))
    assert os.readlink(volume / "again") == "a"


def test_sparse_content_stays_sparse(volume):
    unpack(volume, Made("disk.img", content=b"boot", extra=64 << 20))
    found = (volume / "disk.img").stat()
    assert (found.st_size, found.st_blocks * 512 < 1 << 20) == ((64 << 20) + 4, True)


def test_what_stood_there_is_replaced_only_where_the_archive_has_it(volume):
    (volume / "lost+found").mkdir()
    (volume / "old").mkdir()
    (volume / "old" / "inner").write_text("1")
    (volume / "old" / "locked").mkdir(mode=0)
    (volume / "other").write_text("other")
    unpack(volume, folder("lost+found"), Made("old", content=b"new"), Made("fresh"))
    assert sorted(os.listdir(volume)) == ["fresh", "lost+found", "old", "other"]
    assert (volume / "old").read_text() == "new"


def test_nothing_is_seen_before_commit(volume):
    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))) as target:
        unpacked = target.unpack([Made("f", content=b"12345")])
        assert (unpacked.members, unpacked.written) == (1, 5)
        assert os.listdir(volume) == [STAGING]
    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))) as target:
        target.unpack([Made("g")])
        target.commit()
    assert os.listdir(volume) == ["g"]


def test_a_source_that_ends_too_early_is_passed_on(volume):
    def members():
        yield Made("f", content=b"x")
        raise ContentTruncated("cut")

    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))) as target:
        with pytest.raises(ContentTruncated):
            target.unpack(members())
        target.wipe()
    assert os.listdir(volume) == []


def test_a_second_worker_waits(volume):
    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))), pytest.raises(TargetBusy):
        DirectoryTarget(DirectoryTargetSpec(path=str(volume)))


def test_what_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "missing"):
        with pytest.raises(TargetUnsuitable):
            DirectoryTarget(DirectoryTargetSpec(path=str(tmp_path / name)))


def test_bounds(volume, monkeypatch):
    monkeypatch.setattr(directory, "MAX_MEMBERS", 3)
    unpack(volume, *[Made(f"f{n}") for n in range(3)])
    with pytest.raises(ArchiveUnsafe):
        unpack(volume, *[Made(f"f{n}") for n in range(4)])
    monkeypatch.setattr(directory, "MAX_MEMBERS", 100)
    monkeypatch.setattr(directory, "MAX_DIRECTORIES", 5)
    with pytest.raises(ArchiveUnsafe):
        unpack(volume, *[folder(f"d{n}") for n in range(8)])


def test_a_member_larger_than_the_volume_is_refused_before_it_is_written(volume):
    member = Made("f")
    type(member).stored = property(lambda self: (1 << 62) if self.name == "f" else len(self.content))
    try:
        with pytest.raises(TargetFull, match="available"):
            unpack(volume, member)
    finally:
        type(member).stored = property(lambda self: len(self.content))


def test_progress_is_told(volume):
    told = []
    with DirectoryTarget(DirectoryTargetSpec(path=str(volume))) as target:
        target.unpack([Made("a", content=b"123"), Made("b", content=b"45")], told.append)
    assert told == [3, 2]


parts = st.sampled_from(["a", "b", "c", ".", "..", "", "secret", "volume"])
paths = st.lists(parts, max_size=5).map("/".join)
random_members = st.builds(
    Made,
    name=paths,
    kind=st.sampled_from(["file", "directory", "symlink", "hardlink", "symlink"]),
    content=st.binary(max_size=3),
    link=paths,
)


@settings(max_examples=300, deadline=None)
@given(members=st.lists(random_members, max_size=10))
def test_no_archive_reaches_out(tmp_path_factory, members):
    around = tmp_path_factory.mktemp("around")
    volume = around / "volume"
    volume.mkdir()
    (around / "secret").write_text("secret")
    try:
        unpack(volume, *members)
    except CdiError:
        assert os.listdir(volume) == []
    for here, directories, files in os.walk(volume):
        for name in directories + files:
            try:
                os.stat(os.path.join(here, name))
            except OSError as error:
                # A link to itself has no target, though realpath returns a path for it.
                if error.errno == errno.ELOOP:
                    continue
            real = os.path.realpath(os.path.join(here, name))
            assert real == str(volume) or real.startswith(f"{volume}/"), (here, name)
    assert sorted(os.listdir(around)) == ["secret", "volume"]
    assert (around / "secret").stat().st_nlink == 1
