"""Tests that a password given to a command is stored nowhere after it was killed and another command has run."""

from __future__ import annotations

import time

import pytest

from tests.faults.server import Fault

PASSWORD = "correct horse battery staple"


@pytest.fixture
def temporary(cdi, tmp_path):
    place = tmp_path / "temporary"
    place.mkdir()
    cdi.environment["TMPDIR"] = str(place)
    return place


def holding(*places):
    """Return the files that contain the password."""
    return [
        path
        for place in places
        for path in (place.rglob("*") if place.is_dir() else ())
        if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("command", ["inspect", "explain", "import --to"])
def test_no_secret_of_a_killed_command_stays(command, cdi, temporary, tmp_path, fault_server):
    url = fault_server.put("/disk", b"x", always=Fault(stall_after=0))
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "image").write_bytes(b"an image" * 1000)
    words, *rest = command.split()
    target = [*rest, str(tmp_path / "disk.img")] if rest else []
    access = ["--username", "me", "--password-file", str(tmp_path / "password")]
    with cdi.start(words, url, *target, *access) as process:
        end = time.monotonic() + 60
        while not (holding(temporary, cdi.home) and fault_server.asked("/disk")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.kill()
    assert holding(temporary, cdi.home)
    cdi(words, tmp_path / "image", *([*rest, tmp_path / "other.img"] if rest else []))
    assert holding(temporary, cdi.home) == []
