"""Tests that a command's private files are removed: at its end or, if it was killed, by the next command."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cdi import atomic_file
from cdi.api.errors import TargetBusy, TargetUnsuitable
from cdi.local import resumable_dirs
from cdi.local.home import Home
from cdi.private_directory import private_directory, remove_stale

KILLED = """
import os, signal
from cdi.private_directory import private_directory
with private_directory() as directory:
    (directory / "deep").mkdir()
    (directory / "deep" / "secret").write_text("s3cret")
    print(directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return place


@pytest.fixture
def left():
    done = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    directory = Path(done.stdout.strip())
    assert (directory / "deep" / "secret").exists()
    return directory


def test_it_is_private_and_goes_with_its_context(temporary):
    with private_directory() as first, private_directory() as second:
        assert first != second
        for each in (first, first.parent):
            assert stat.S_IMODE(each.stat().st_mode) == 0o700
        assert first.is_relative_to(temporary)
        (first / "secret").write_text("x")
        with pytest.raises(ZeroDivisionError), private_directory() as third:
            raise ZeroDivisionError
        assert not third.exists()
    assert [each.name for each in first.parent.iterdir()] == ["lock"]


def test_what_a_killed_command_left_is_removed_by_the_next_one(left):
    with private_directory() as mine:
        assert not left.exists()
        assert left.parent == mine.parent


def test_what_a_killed_command_left_is_removed_by_a_supervisor(left):
    remove_stale()
    assert not left.exists()


def test_nothing_is_taken_from_a_command_that_lives():
    with private_directory() as first:
        (first / "secret").write_text("x")
        remove_stale()
        with private_directory():
            assert (first / "secret").read_text() == "x"


def test_the_supervisor_waits_for_nobody(left):
    with atomic_file.locked(left.parent / "lock"):
        remove_stale()
        assert left.exists()


@pytest.mark.parametrize("taken", ["open", "file", "link"])
def test_a_name_that_somebody_else_could_see_into_is_not_used(temporary, tmp_path, taken):
    base = temporary / f"cdi-{os.getuid()}"
    if taken == "open":
        base.mkdir()
        base.chmod(0o777)
    elif taken == "file":
        base.write_text("")
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        base.symlink_to(tmp_path / "elsewhere")
    with private_directory() as mine:
        assert mine.parent == temporary
        assert stat.S_IMODE(mine.stat().st_mode) == 0o700
        remove_stale()
        assert mine.exists()
    assert not mine.exists()


def test_links_in_it_are_not_followed(left, tmp_path):
    elsewhere = tmp_path / "mine"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    (left / "link").symlink_to(elsewhere)
    (left.parent / "link").symlink_to(elsewhere)
    remove_stale()
    assert not left.exists()
    assert (elsewhere / "file").exists()


# --- imports without a DataVolume ---------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.make()
    return home


def killed_import(home, name, *, journal):
    script = f"""
import os, signal
from pathlib import Path
from cdi.local.home import Home
from cdi.local.resumable_dirs import resumable_directory
with resumable_directory(Home(Path({str(home.root)!r})), {name!r}) as directory:
    (directory / "inputs" / "secret").write_text("s3cret")
    (directory / "scratch" / "spool").write_text("x")
    if {journal}:
        (directory / "journal").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert (home.direct / name / "inputs" / "secret").exists()
    return home.direct / name


@pytest.mark.parametrize("by", ["supervisor", "other", "same"])
def test_secrets_of_a_killed_import_are_removed_and_its_journal_stays(home, by):
    old = killed_import(home, "old", journal=True)
    if by == "supervisor":
        resumable_dirs.remove_stale(home)
    else:
        with resumable_dirs.resumable_directory(home, "old" if by == "same" else "new") as directory:
            assert list((directory / "inputs").iterdir()) == list((directory / "scratch").iterdir()) == []
    assert sorted(each.name for each in old.iterdir()) == ["journal", "lock"]


def test_an_import_that_runs_keeps_what_it_has(home):
    with resumable_dirs.resumable_directory(home, "one") as directory:
        (directory / "inputs" / "secret").write_text("x")
        with resumable_dirs.resumable_directory(home, "two") as other:
            assert other != directory
        resumable_dirs.remove_stale(home)
        with pytest.raises(TargetBusy), resumable_dirs.resumable_directory(home, "one"):
            raise AssertionError("it is under way")
        assert (directory / "inputs" / "secret").read_text() == "x"
    assert list(home.direct.iterdir()) == []


def test_nothing_is_made_where_nothing_was(tmp_path):
    resumable_dirs.remove_stale(Home(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_made_is_told(home):
    home.direct.write_text("a file")
    with pytest.raises(TargetUnsuitable), resumable_dirs.resumable_directory(home, "one"):
        raise AssertionError("it cannot be")
