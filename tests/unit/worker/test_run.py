"""Tests of the worker's files: one outcome for any input."""

import fcntl
import json
import os
import random
from pathlib import Path

import pytest

from cdi.api.job import BlankSourceSpec, FileSourceSpec, FileTargetSpec, Job, Outcome, Policy, Progress
from cdi.worker import run as module
from cdi.worker.run import main, run


@pytest.fixture
def status(tmp_path):
    directory = tmp_path / "status"
    directory.mkdir()
    return directory


def job_file(tmp_path, **fields):
    fields = {"id": "x", "source": BlankSourceSpec(), "size": 1 << 20} | fields
    job = Job(target=FileTargetSpec(path=str(tmp_path / "disk.img")), **fields)
    path = tmp_path / "job.json"
    path.write_text(job.to_json())
    return str(path)


def outcome(status):
    return Outcome.from_json((status / "outcome.json").read_text())


def test_a_job_ends_in_an_outcome_and_the_last_progress(tmp_path, status):
    assert main(["run", job_file(tmp_path), "--status-dir", str(status)]) == 0
    assert outcome(status).id == "x"
    assert outcome(status).failure is None
    assert Progress.from_json((status / "progress.json").read_text()).phase == "done"
    assert (tmp_path / "disk.img").stat().st_size == 1 << 20
    assert sorted(os.listdir(status)) == ["lock", "outcome.json", "progress.json"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["run", "x"], ["walk", "x", "--status-dir", "y"], ["run", "x", "--dir", "y"], ["run"] * 5],
)
def test_a_wrong_call_is_told(arguments, capsys):
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b'{"id": 5}', b"[" * 100_000])
def test_a_job_that_cannot_be_read_is_an_outcome(tmp_path, status, content, capsys):
    path = tmp_path / "job.json"
    if content is not None:
        path.write_bytes(content)
    assert run(str(path), str(status)) == 2
    assert outcome(status).failure.code == "InvalidManifest"
    assert "InvalidManifest" in capsys.readouterr().err


def test_a_failure_is_an_outcome_and_its_exit_status(tmp_path, status, capsys):
    path = job_file(tmp_path, source=FileSourceSpec(path=str(tmp_path / "nothing")))
    assert run(path, str(status)) == 3
    assert outcome(status).failure.code == "SourceNotFound"
    assert "error[SourceNotFound]" in capsys.readouterr().err


def test_a_defect_is_an_outcome_too(tmp_path, status, monkeypatch, capsys):
    def defect(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("cdi.transfer.run._dispatch", defect)
    assert run(job_file(tmp_path), str(status)) == 7
    assert outcome(status).failure.code == "InternalError"
    assert "Traceback" in capsys.readouterr().err


def test_a_second_worker_leaves_the_first_ones_files_alone(tmp_path, status, capsys):
    holder = os.open(status / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert run(job_file(tmp_path), str(status)) == 6
    finally:
        os.close(holder)
    assert os.listdir(status) == ["lock"]
    assert "TargetBusy" in capsys.readouterr().err
    # The lock is released when its holder ends.
    assert run(job_file(tmp_path), str(status)) == 0


def test_every_file_is_replaced_in_one_step(tmp_path, status, monkeypatch):
    names = []
    rename = os.replace

    def watched(old, new):
        json.loads(Path(old).read_text())
        names.append(os.path.basename(new))
        rename(old, new)

    monkeypatch.setattr(module.os, "replace", watched)
    assert run(job_file(tmp_path), str(status)) == 0
    assert names.count("outcome.json") == 1
    assert names[-1] == "outcome.json"
    assert "progress.json" in names


def test_bytes_are_those_of_the_file(tmp_path, status):
    data = random.Random(0).randbytes((1 << 20) + 512)
    (tmp_path / "image").write_bytes(data)
    path = job_file(
        tmp_path, source=FileSourceSpec(path=str(tmp_path / "image")), size=None, policy=Policy(record_digest=True)
    )
    assert run(path, str(status)) == 0
    assert (tmp_path / "disk.img").read_bytes() == data
    assert outcome(status).digest.startswith("sha256:")
