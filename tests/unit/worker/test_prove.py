"""Tests of boot proofs that end before a virtual machine starts; tests/integration/test_prove.py boots some."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import BootFailed, Retry, UsageError
from cdi.api.job import Failure
from cdi.api.proof import MAX_RESULT, ProofJob, ProofResult
from cdi.worker.__main__ import _main


def proven(tmp_path, job):
    (tmp_path / "job").write_text(job if isinstance(job, str) else job.to_json())
    log = tmp_path / "termination-log"
    status = _main(["prove", f"--job={tmp_path}/job", f"--termination-log={log}"])
    return status, ProofResult.from_json(log.read_text())


def refusal(tmp_path, job):
    status, result = proven(tmp_path, job)
    assert not result.booted
    assert status == result.failure.exit_status != 0
    assert status != BootFailed.exit_status
    return result


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return str(path)


def test_an_invalid_job_is_refused_by_its_field(tmp_path):
    failure = refusal(tmp_path, '{"id": "uid-1", "disk": "/data/disk.img", "memory": 1}').failure
    assert failure.code == "InvalidManifest"
    assert "memory" in failure.message


def test_a_missing_job_is_reported(tmp_path):
    log = tmp_path / "end"
    assert _main(["prove", f"--job={tmp_path}/none", f"--termination-log={log}"]) == UsageError.exit_status
    assert "cannot read the job" in ProofResult.from_json(log.read_text()).failure.message


def test_an_unknown_option_shows_the_usage(capsys):
    assert _main(["prove", "--loudly"]) == UsageError.exit_status
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["(", "x" * 2000])
def test_an_unusable_pattern_is_refused_before_anything_starts(tmp_path, disk, pattern):
    result = refusal(tmp_path, ProofJob(id="uid-1", disk=disk, expect=pattern))
    assert result.id == "uid-1"
    assert result.failure.code == "InvalidManifest"


def test_a_missing_emulator_is_named_with_its_remedy(tmp_path, disk):
    failure = refusal(tmp_path, ProofJob(id="uid-1", disk=disk, architecture="sparc64le")).failure
    assert failure.code == "QemuMissing"
    assert failure.retry is Retry.ON_CHANGE
    assert "qemu-system-sparc64le is not installed" in failure.message
    assert "use a worker image that contains it" in failure.message


def test_an_architecture_is_never_a_path(tmp_path, disk):
    failure = refusal(tmp_path, ProofJob(id="uid-1", disk=disk, architecture="../../bin/sh")).failure
    assert failure.code == "QemuMissing"


def test_a_missing_disk_is_named(tmp_path):
    failure = refusal(tmp_path, ProofJob(id="uid-1", disk=str(tmp_path / "none"))).failure
    assert failure.code == "TargetIo"
    assert str(tmp_path / "none") in failure.message


def test_a_termination_log_that_cannot_be_written_is_logged(tmp_path, disk, capsys):
    (tmp_path / "job").write_text(ProofJob(id="uid-1", disk=disk, expect="(").to_json())
    status = _main(["prove", f"--job={tmp_path}/job", f"--termination-log={tmp_path}/none/end"])
    assert status == UsageError.exit_status
    assert "cannot write the termination message" in capsys.readouterr().err


@given(
    console=st.text(max_size=6000),
    message=st.text(max_size=6000),
    failure=st.none() | st.text(max_size=6000),
    identity=st.text(max_size=300),
)
def test_a_result_always_fits_into_a_termination_message(console, message, failure, identity):
    error = None if failure is None else Failure(code="QemuFailed", message=failure, retry=Retry.NEVER)
    result = ProofResult(id=identity, message=message, console=console, accelerator="tcg", seconds=1.5, failure=error)
    text = result.to_json()
    assert len(text) <= MAX_RESULT
    assert text.isascii()
    shortened = ProofResult.from_json(text)
    assert console.endswith(shortened.console)
    assert message.startswith(shortened.message)
    assert shortened.booted is result.booted


def test_console_output_is_shortened_before_the_message():
    result = ProofResult(id="uid-1", message="m" * 400, console="a" * 8000 + "end")
    shortened = ProofResult.from_json(result.to_json())
    assert shortened.message == result.message
    assert shortened.console.endswith("aend")
    assert len(json.dumps(shortened.console)) > 3000
