from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest

from cdi.api.errors import Retry
from cdi.api.job import (
    BlankSourceSpec,
    Failure,
    FileSourceSpec,
    FileTargetSpec,
    HttpSourceSpec,
    Job,
    Limits,
    Outcome,
    Progress,
    StreamSourceSpec,
)
from cdi.logs import configure_worker
from cdi.transfer import watermark
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from cdi.worker import log
from tests.faults.server import Fault
from tests.integration.transfer.worker_process import disk_job


@pytest.fixture
def lines(capsys):
    """Return a function that returns the lines logged since its last call, without timestamps."""

    def look():
        said = capsys.readouterr().err.splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in said)
        return [line[21:] for line in said]

    return look


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (HttpSourceSpec(url="https://me:secret@h/x.qcow2?token=secret"), "https://h/x.qcow2"),
        (FileSourceSpec(path="/a/b"), "/a/b"),
        (StreamSourceSpec(), "a stream"),
        (BlankSourceSpec(), "nothing"),
    ],
)
def test_a_job_is_named_without_secrets(lines, source, words):
    log.log_started(Job(id="x", source=source, target=FileTargetSpec(path="/v/disk.img"), size=1 << 30))
    assert lines() == [f"import of {words} onto file /v/disk.img of 1 GiB"]


def test_warnings_are_logged_of_a_failure_too(lines):
    failure = Failure(code="SourceNotAnImage", message="no image", retry=Retry.NEVER)
    log.log_finished(Outcome(id="x", failure=failure, warnings=("a page",)))
    assert lines() == ["warning: a page", "error[SourceNotAnImage]: no image"]


def test_the_course_is_told_when_it_changes_and_now_and_then(lines, monkeypatch):
    clock = 0.0
    monkeypatch.setattr(log.time, "monotonic", lambda: clock)
    course = log.ProgressLogger()

    def tell(done, phase="transferring", note="", after=0.5):
        nonlocal clock
        clock += after
        course.tell(Progress(phase=phase, done=done, total=100, note=note))

    tell(0, "preparing")
    tell(0)
    tell(10)
    tell(20, after=10)
    tell(20, after=10)
    tell(20, note="waiting 5 s: SourceUnreachable")
    tell(20, note="waiting 4 s: SourceUnreachable")
    tell(90, "verifying")
    tell(100, "done")
    assert lines() == [
        "transferring: 0 B of 100 B, 0 %",
        "transferring: 20 B of 100 B, 20 %",
        "transferring: 20 B of 100 B, 20 %, waiting 5 s: SourceUnreachable",
        "verifying: 90 B of 100 B, 90 %",
    ]


@pytest.mark.parametrize(("verbosity", "told"), [("0", 0), ("", 1), ("1", 1), ("2", 4), ("10", 4), ("much", 1)])
def test_the_course_is_told_as_often_as_is_asked_for(lines, monkeypatch, verbosity, told):
    clock = 100.0
    monkeypatch.setattr(log.time, "monotonic", lambda: clock)
    monkeypatch.setenv("CDI_VERBOSITY", verbosity)
    course = log.ProgressLogger()
    for done in range(4):
        course.tell(Progress(phase="transferring", done=done, total=100))
        clock += 2.0
    assert len(lines()) == told


def test_the_end(lines):
    log.log_finished(
        Outcome(
            id="x",
            format="raw",
            wrappers=("gz",),
            path="raw-stream",
            fetched=1 << 20,
            written=2 << 20,
            resumed_at=4096,
            digest="sha256:00",
            verified_by=("length",),
            warnings=("started over",),
            seconds=1.25,
        )
    )
    log.log_finished(Outcome(id="x", failure=Failure(code="SourceNotFound", message="a\x1b[2Jb.", retry=Retry.NEVER)))
    assert lines() == [
        "warning: started over",
        "done in 1.2 s: raw in gz, by raw-stream, 1 MiB fetched, 2 MiB written, resumed at 4 KiB,"
        " verified by length, sha256:00",
        "error[SourceNotFound]: a\\x1b[2Jb.",
    ]


def test_limits(lines):
    log.limited(Limits(bandwidth=1 << 20, connections=2))
    log.limited(Limits())
    assert lines() == [
        "limits: bandwidth 1 MiB/s, connections 2",
        "limits: bandwidth not limited, connections as before",
    ]


@pytest.mark.parametrize(("verbosity", "level"), [("2", "INFO"), ("3", "DEBUG"), ("10", "DEBUG"), ("many", "INFO")])
def test_details_are_logged_from_verbosity_three_on(monkeypatch, verbosity, level):
    monkeypatch.setenv("CDI_VERBOSITY", verbosity)
    root, own = logging.getLogger(), logging.getLogger("cdi")
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    before = root.level, own.level
    try:
        configure_worker()
        assert own.level == getattr(logging, level)
    finally:
        root.setLevel(before[0])
        own.setLevel(before[1])


def test_details_are_connections_requests_retries_and_checkpoints_without_secrets(
    fault_server, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(watermark, "CHECKPOINT_BYTES", 1)
    caplog.set_level(logging.DEBUG, logger="cdi")
    away = Fault(status=503, retry_after="0")
    url = fault_server.put("/disk", b"x" * 4096, faults=[away]) + "?X-Amz-Signature=5ec7e7"
    job = disk_job("x", url, tmp_path, retries=3)
    job = replace(job, source=replace(job.source, headers=("Authorization: Basic 5ec7e7",)))
    outcome = transfer(job, TransferControl(job))
    assert outcome.failure is None
    details = caplog.text
    assert "connected to 127.0.0.1" in details
    assert "GET http://127.0.0.1" in details
    assert ": 503" in details
    assert "retrying in " in details
    assert "attempt with <HttpSource http://127.0.0.1" in details and ": probed, 0 readers>" in details
    assert "reusing <Connection for http://127.0.0.1" in details and ": idle, " in details
    assert "checkpoint at byte 4096 of 4096" in details
    assert "path raw-ranged: " in details
    assert "5ec7e7" not in details
