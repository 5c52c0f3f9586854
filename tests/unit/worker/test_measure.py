"""Tests of a worker that detects the size of a disk."""

from __future__ import annotations

import json
import os

import pytest

from cdi.api.errors import Retry, UsageError
from cdi.api.job import Outcome
from cdi.worker.__main__ import _main

SIZE = 3 * 1024 * 1024


def looked(tmp_path, path):
    log = tmp_path / "termination-log"
    status = _main(["measure", str(path), "uid-1", str(log)])
    return status, Outcome.from_json(json.dumps(json.loads(log.read_text())["outcome"]))


def test_it_says_how_large_a_disk_is_and_whose(tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"x")
    os.truncate(disk, SIZE)
    disk.chmod(0o400)
    status, outcome = looked(tmp_path, disk)
    assert (status, outcome.id, outcome.disk_size, outcome.failure) == (0, "uid-1", SIZE, None)


@pytest.mark.parametrize(("kind", "code"), [("missing", "SourceNotFound"), ("directory", "SourceNotSupported")])
def test_where_there_is_no_disk_nobody_needs_to_look_again(tmp_path, kind, code):
    path = tmp_path / "disk.img"
    if kind == "directory":
        path.mkdir()
    status, outcome = looked(tmp_path, path)
    assert outcome.failure.code == code
    assert outcome.failure.retry is not Retry.BACKOFF
    assert status == outcome.failure.exit_status != 0


def test_anything_else_is_told_how_it_is_called():
    assert _main(["measure"]) == UsageError.exit_status
