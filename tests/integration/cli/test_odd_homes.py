"""Tests of every command with a CDI_HOME that is no directory, cannot be read or written, or has an unusual name."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdi.api.errors import all_errors

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
DOCUMENTED = {0, 1} | {error.exit_status for error in all_errors()}
MANIFEST = """
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {name: applied}
spec: {source: {blank: {}}, storage: {resources: {requests: {storage: 1Mi}}}}
"""
COMMANDS = [
    "--help",
    "version",
    "completion bash",
    "inspect {disk}",
    "explain {disk} --name x",
    "explain -f {manifest}",
    "explain dv/k1",
    "import {disk} --name x --size 4Mi --timeout 60s",
    "import {disk} --to {out} --force",
    "upload {disk} y --size 4Mi --timeout 60s",
    "clone k1 z --timeout 60s",
    "batch {images} --lockfile {lock}",
    "boot-check nope",
    "apply -f {manifest} --dry-run",
    "apply -f {manifest}",
    "get dv",
    "get all -o json",
    "describe dv/k1",
    "wait dv/k1 --timeout 60s",
    "logs dv/k1",
    "limit dv/k1 --bandwidth 1M",
    "delete dv/k1 --timeout 60s",
]
READING = {"describe dv/k1", "wait dv/k1 --timeout 60s", "logs dv/k1", "get dv", "get all -o json", "explain dv/k1"}
"""Commands that write nothing, so they work wherever reading does."""


@dataclass(frozen=True)
class Ended:
    """The result of a command."""

    status: int
    out: str
    err: str


@pytest.fixture
def walk(cdi, tmp_path):
    """Return a function that runs every command as a user subject to permissions and returns the results."""
    (tmp_path / "disk.raw").write_bytes(os.urandom(4 * MIB))
    (tmp_path / "dv.yaml").write_text(MANIFEST)
    (tmp_path / "images.yaml").write_text("images: [{name: b1, url: disk.raw, size: 4Mi}]\n")
    places = {
        "disk": tmp_path / "disk.raw",
        "manifest": tmp_path / "dv.yaml",
        "images": tmp_path / "images.yaml",
        "lock": tmp_path / "cdi.lock",
        "out": tmp_path / "out.raw",
    }

    def walk(lines=COMMANDS, *, gone=False):
        commands = [[word.format(**places) for word in line.split()] for line in lines]
        done = subprocess.run(
            [*unprivileged(), sys.executable, "-m", "tests.integration.cli.walker"],
            input=json.dumps({"commands": commands, "gone": gone}),
            cwd=tmp_path,
            env={**cdi.variables, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = {line: Ended(**ended) for line, ended in zip(lines, json.loads(done.stdout), strict=True)}
        for line, ended in found.items():
            said = f"cdi {line}: {ended.status}\n{ended.out}{ended.err}"
            assert ended.status in DOCUMENTED, said
            assert ended.status != 7, said
            assert "Traceback" not in said, said
            assert "InternalError" not in said, said
            if ended.status:
                errors = [line for line in ended.err.splitlines() if line.startswith("error[")]
                assert errors == ended.err.splitlines()[-1:], said
        return found

    return walk


def unprivileged():
    """Return a command prefix that makes permissions apply to root too."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]


def volume(cdi):
    """Make volume k1, and wait until no worker and no supervisor runs in CDI_HOME."""
    (cdi.cwd / "k1.raw").write_bytes(os.urandom(4 * MIB))
    cdi("import", "k1.raw", "--name", "k1", "--size", "4Mi")
    with open(cdi.home / "supervisor.lock", "rb") as lock:
        subprocess.run(["flock", "-x", "-w", "60", lock.fileno().__str__()], pass_fds=[lock.fileno()], check=True)


@pytest.mark.parametrize(
    "kind", ["a file", "below a file", "a dangling link", "a link to itself", "a device", "too long"]
)
def test_what_is_no_directory_is_refused_by_whatever_needs_one(cdi, walk, tmp_path, kind):
    odd = tmp_path / "odd"
    match kind:
        case "a file" | "below a file":
            odd.write_text("mine")
        case "a dangling link":
            odd.symlink_to("nothing")
        case "a link to itself":
            odd.symlink_to(odd)
        case _:
            pass
    homes = {"below a file": odd / "home", "a device": Path("/dev/null"), "too long": tmp_path / ("x" * 300)}
    cdi.environment["CDI_HOME"] = str(homes.get(kind, odd))
    found = walk()
    for line, done in found.items():
        free = line in ("--help", "version", "completion bash", "inspect {disk}")
        assert done.status == (0 if free else 6), (line, done.err)
        if not free:
            assert "CDI_HOME" in done.err
            assert "error[TargetUnsuitable]" in done.err, (line, done.err)
    assert not odd.is_file() or odd.read_text() == "mine"


def test_one_that_is_out_of_reach_is_refused_for_its_permissions(cdi, walk, tmp_path):
    volume(cdi)
    cdi.home.chmod(0)
    try:
        found = walk()
    finally:
        cdi.home.chmod(0o700)
    for line, done in found.items():
        free = line in ("--help", "version", "completion bash", "inspect {disk}")
        assert done.status == (0 if free else 6), (line, done.err)
        assert free or "error[TargetPermission]" in done.err, (line, done.err)


def writable(root, *, yes):
    for directory, _, files in os.walk(root):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            mode = stat.S_IMODE(os.stat(path).st_mode)
            os.chmod(path, mode | 0o200 if yes else mode & ~0o222)


@pytest.mark.parametrize("how", ["permissions", pytest.param("mount", marks=pytest.mark.root)])
def test_a_read_only_one_can_be_looked_at(cdi, walk, tmp_path, how):
    if how == "mount" and os.geteuid() != 0:
        pytest.skip("mounts need root")
    volume(cdi)
    with ExitStack() as stack:
        if how == "mount":
            subprocess.run(["mount", "--bind", cdi.home, cdi.home], check=True)
            stack.callback(subprocess.run, ["umount", cdi.home], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", cdi.home], check=True)
        else:
            writable(cdi.home, yes=False)
            stack.callback(writable, cdi.home, yes=True)
        found = walk()
    for line in READING:
        assert found[line].status == 0, (line, found[line].err)
        assert "error[" not in found[line].err
    assert "Verified by" in found["describe dv/k1"].out
    for line in ("apply -f {manifest}", "import {disk} --name x --size 4Mi --timeout 60s", "clone k1 z --timeout 60s",
                 "batch {images} --lockfile {lock}", "import {disk} --to {out} --force",
                 "delete dv/k1 --timeout 60s", "limit dv/k1 --bandwidth 1M"):  # fmt: skip
        assert found[line].status == 6, (line, found[line].err)
        assert "error[TargetPermission]" in found[line].err, (line, found[line].err)


@pytest.mark.parametrize(
    "name", [b"with spaces", b"with\nnewline", b"not \xff utf-8", "ümlaut".encode(), b"/".join([b"deep" * 50] * 8), b"-o"],
    ids=["spaces", "newline", "not utf-8", "umlaut", "deep", "option"],
)  # fmt: skip
def test_an_odd_name_is_a_name(cdi, walk, tmp_path, name):
    cdi.home = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    volume(cdi)
    found = walk()
    for line, done in found.items():
        assert done.status == (2 if line == "boot-check nope" else 0), (line, done.out, done.err)
    assert cdi.disk("x").read_bytes() == (tmp_path / "disk.raw").read_bytes()


def test_a_removed_current_directory_is_no_obstacle_to_absolute_paths(cdi, walk):
    volume(cdi)
    found = walk(gone=True)
    for line, done in found.items():
        assert done.status == (2 if line == "boot-check nope" else 0), (line, done.out, done.err)


def test_a_relative_path_below_a_removed_directory_is_told(cdi, walk):
    lines = [
        "inspect x.raw",
        "explain x.raw",
        "import x.raw --name x",
        "import {disk} --to x.raw",
        "upload x.raw y",
        "batch -",
        "import http://127.0.0.1:9/x --name x --size 1Mi --keyring x",
    ]
    for line, ended in walk(lines, gone=True).items():
        assert ended.status == 2, (line, ended.err)
        told = "the current directory was removed, and the path is relative to it" in ended.err
        assert told == (line in lines[:5]), (line, ended.err)
    cdi.environment["CDI_HOME"] = "home"
    ended = walk(["get dv"], gone=True)["get dv"]
    assert ended.status == 6
    assert "CDI_HOME is a relative path, and the current directory was removed" in ended.err
