"""Tests of CDI_HOME on a file system that is full, or becomes full during an import."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter

import pytest

KIB, MIB = 1 << 10, 1 << 20

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]


@pytest.fixture
def small(cdi, tmp_path):
    """Mount a file system of 8 MiB with an existing CDI_HOME in it."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=True)
    cdi.home = place / "home"
    (tmp_path / "c.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}")
    (tmp_path / "large.raw").write_bytes(os.urandom(24 * MIB))
    try:
        cdi("apply", "-f", "c.yaml")
        yield place
    finally:
        (place / "filler").unlink(missing_ok=True)
        cdi("delete", "dv", "--all", "--ignore-not-found")
        with open(cdi.home / "supervisor.lock", "rb") as lock:
            subprocess.run(["flock", "-w", "60", str(lock.fileno())], pass_fds=[lock.fileno()], check=True)
        # The supervisor has released its lock, but its process may exist for a moment more.
        subprocess.run(["umount", "--lazy", place], check=True)


def leave(place, free):
    """Fill the file system up to `free` bytes."""
    found = os.statvfs(place)
    with open(place / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, found.f_bavail * found.f_frsize - free)


def ready(cdi):
    body = json.loads(cdi("get", "dv/full", "-o", "json").stdout)
    return {"reason": "", "message": "", **body["status"].get("detail", {})}


def ready_and_full(cdi):
    """Return the condition once it reports the full file system; while the import is retried, it reports that."""
    deadline = time.monotonic() + 120
    while (found := ready(cdi))["reason"] != "TargetFull":
        assert not found["reason"], found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def check_log(cdi):
    """Check that no error is in the supervisor's log again and again; every retry has its lines of information."""
    lines = [line.partition(" ")[2] for line in (cdi.home / "supervisor.log").read_text().splitlines()]
    assert not [line for line in lines if "InternalError" in line or "Traceback" in line], lines
    assert max(Counter(line for line in lines if line.startswith(("warning", "error"))).values(), default=0) <= 3, lines


@pytest.mark.parametrize("free", [None, 400 * KIB, 64 * KIB, 40 * KIB, 24 * KIB, 16 * KIB], ids=str)
def test_an_import_that_fills_it_ends_the_wait_and_is_told_in_the_condition(cdi, small, free):
    if free is not None:
        leave(small, free)
    done = cdi("import", "large.raw", "--name", "full", "--timeout", "100s", status=6)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error[TargetFull]: ")
    assert str(cdi.home) in last
    assert "Try: free space" in last
    assert "InternalError" not in done.stderr
    assert str(cdi.home) in ready_and_full(cdi)["message"]
    if free is None or free > 16 * KIB:
        # The event remains while the import is retried; with less there may be no room for it.
        assert "TargetFull" in cdi("describe", "dv/full").stdout
    check_log(cdi)
    # Deleting a volume to make room must work although there is no room.
    cdi("delete", "dv/full")
    assert not (cdi.home / "volumes/default/full").exists()


def test_one_that_is_full_takes_no_object_and_says_where(cdi, small):
    leave(small, 0)
    for arguments in (["import", "large.raw", "--name", "full"], ["apply", "-f", "dv.yaml"]):
        (cdi.cwd / "dv.yaml").write_text(
            "{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataVolume, metadata: {name: full}, "
            "spec: {source: {blank: {}}, storage: {resources: {requests: {storage: 1Mi}}}}}"
        )
        last = cdi(*arguments, status=6).stderr.splitlines()[-1]
        assert last.startswith("error[TargetFull]: no space left for ")
        assert f"Try: free space in the file system of {cdi.home}" in last


def test_it_goes_on_by_itself_once_there_is_space(cdi, small, tmp_path):
    (tmp_path / "fits.raw").write_bytes(os.urandom(4 * MIB))
    leave(small, 2 * MIB)
    cdi("import", "fits.raw", "--name", "full", status=6)
    (small / "filler").unlink()
    cdi("wait", "dv/full", "--patient", "--timeout", "100s")
    assert cdi.disk("full").read_bytes() == (tmp_path / "fits.raw").read_bytes()
