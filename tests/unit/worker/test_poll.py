"""Tests of ``cdi-worker poll`` as a pod runs it."""

import json
import os

import pytest

from cdi.api.job import BlankSourceSpec, Failure, HttpSourceSpec
from cdi.api.poll import PollJob, PollResult
from cdi.worker.__main__ import command
from cdi.worker.poll import main
from tests.faults.server import Fault


@pytest.fixture
def run(tmp_path):
    def make(job, program=main):
        file, log = tmp_path / "job", tmp_path / "termination-log"
        file.write_text(job if isinstance(job, str) else job.to_json())
        log.touch()
        inode = os.stat(log).st_ino
        arguments = ["--job", str(file), "--termination-log", str(log)]
        status = program(arguments if program is main else ["poll", *arguments])
        assert os.stat(log).st_ino == inode  # the kubelet reads the file that it has mounted
        text = log.read_text()
        assert len(text.encode()) <= 4096
        return status, PollResult.from_json(text)

    return make


def test_the_result_is_the_termination_message(run, fault_server, capsys):
    fault_server.put("/disk.img", b"x" * 1000, always=Fault(etag='"v1"'))
    url = fault_server.url("/disk.img")
    status, result = run(PollJob(id="uid", source=HttpSourceSpec(url=f"{url}?token=s3cret")), command)
    assert (status, result.id, result.identity, result.failure) == (0, "uid", "etag", None)
    said = capsys.readouterr().err
    assert result.digest in said
    assert "s3cret" not in said


def test_a_failure_is_the_termination_message_and_the_exit_status(run, capsys):
    status, result = run(PollJob(id="uid", source=BlankSourceSpec()))
    assert (status, result.failure.code, result.digest) == (3, "SourceNotSupported", None)
    assert "error[SourceNotSupported]" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", '{"id": "uid"}', '{"id": "uid", "source": {"kind": "none"}}'])
def test_an_invalid_job_is_a_failure(run, text):
    status, result = run(text)
    assert (status, result.failure.code) == (2, "InvalidManifest")


def test_a_missing_job_is_a_failure(tmp_path):
    log = tmp_path / "log"
    assert main(["--job", str(tmp_path / "none"), "--termination-log", str(log)]) == 2
    assert json.loads(log.read_text())["failure"]["code"] == "InvalidManifest"


def test_a_result_of_any_length_is_shortened_to_valid_json():
    failure = Failure(code="SourceRefused", message="\U0001f4a5" * 5000, retry="on-change")
    result = PollResult(
        id="i" * 500,
        digest=f"sha256:{'0' * 64}",
        resolved="docker://" + "r" * 3000,
        architectures=("a" * 60,) * 32,
        verified_by=("v" * 3000,),
        failure=failure,
    )
    text = result.to_json()
    assert len(text.encode()) <= 4096
    read = PollResult.from_json(text)
    assert read.digest == result.digest
    assert read.failure.code == "SourceRefused"
    assert len(read.failure.message) > 200
