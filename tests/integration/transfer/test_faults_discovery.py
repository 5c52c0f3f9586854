"""Tests of a server that temporarily cannot say whether there is a checksum file beside the image."""

from __future__ import annotations

import hashlib
import threading

import pytest

from cdi.api.job import FileTargetSpec, HttpSourceSpec, Job, Policy
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import Fault, FaultServer

IMAGE = bytes(range(256)) * 4096
SUMS = f"{hashlib.sha256(IMAGE).hexdigest()}  x.img\n".encode()
AWAY = Fault(status=503, retry_after="0")


@pytest.fixture
def server():
    with FaultServer() as server:
        server.put("/x.img", IMAGE)
        yield server


def run(server, tmp_path, **policy):
    target = FileTargetSpec(path=str(tmp_path / "disk.img"))
    policy = Policy(**{"retries": 2, "stall_timeout": 5, **policy})
    job = Job(id="x", source=HttpSourceSpec(url=server.url("/x.img")), target=target, policy=policy)
    return transfer(job, TransferControl(job))


def test_a_passing_failure_is_waited_out(server, tmp_path):
    server.put("/SHA256SUMS", SUMS, faults=[AWAY, AWAY])
    outcome = run(server, tmp_path)
    assert outcome.failure is None
    assert "SHA256SUMS" in outcome.verified_by


def test_one_that_stays_is_told_where_no_checksum_is_required(server, tmp_path):
    server.put("/SHA256SUMS", SUMS, always=AWAY)
    outcome = run(server, tmp_path)
    assert outcome.failure is None
    assert "SHA256SUMS" not in outcome.verified_by
    assert any("cannot look for a checksum file" in warning for warning in outcome.warnings)


def test_one_that_stays_is_a_passing_failure_where_a_checksum_is_required(server, tmp_path):
    server.put("/SHA256SUMS", SUMS, always=AWAY)
    outcome = run(server, tmp_path, require_checksum=True)
    assert (outcome.failure.code, outcome.failure.retry) == ("SourceUnavailable", "backoff")
    assert not (tmp_path / "disk.img").exists()


def test_files_that_are_not_there_are_no_failure(server, tmp_path):
    outcome = run(server, tmp_path)
    assert (outcome.failure, outcome.warnings) == (None, ())
    outcome = run(server, tmp_path, require_checksum=True)
    assert (outcome.failure.code, outcome.failure.retry) == ("ChecksumMissing", "never")


def test_nobody_takes_a_signature_away_by_making_a_server_fail(server, tmp_path):
    server.put("/SHA256SUMS", SUMS)
    for name in ("/SHA256SUMS.gpg", "/SHA256SUMS.sign", "/SHA256SUMS.asc", "/SHA256SUMS.sig"):
        server.put(name, b"", always=AWAY)
    outcome = run(server, tmp_path, signature="if-present", keyring=str(tmp_path / "keys"))
    assert (outcome.failure.code, outcome.failure.retry) == ("SourceUnavailable", "backoff")


def test_one_thread_opens_and_probes_the_source_and_looks_for_checksums(server, tmp_path, monkeypatch):
    started, start = [], threading.Thread.start

    def record(thread):
        # The server of this test has threads of its own.
        if thread.name == "setup" or threading.current_thread().name in ("setup", "MainThread"):
            started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", record)
    # Without a checksum the import ends before its first byte.
    outcome = run(server, tmp_path, require_checksum=True)
    assert outcome.failure.code == "ChecksumMissing"
    assert len(server.requests) > 10
    assert started == ["setup"]


def test_the_search_ends_with_the_first_checksum_file(server, tmp_path):
    server.put("/SHA256SUMS", SUMS)
    outcome = run(server, tmp_path)
    assert outcome.failure is None
    assert {request.path for request in server.requests} == {"/x.img", "/SHA256SUMS"}
