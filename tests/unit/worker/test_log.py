from __future__ import annotations

import re

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
from cdi.worker import log


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
    monkeypatch.setenv(log.VERBOSITY, verbosity)
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
