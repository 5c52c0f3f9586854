"""Tests of the sequence of uploads to one volume, fed from memory."""

import hashlib
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cdi.api.digest import Digest
from cdi.api.errors import (
    AlreadyUploaded,
    ChecksumMismatch,
    SourceTruncated,
    TargetIo,
    TargetTooSmall,
    UploadNotReady,
    UploadUnderWay,
    UploadUnknown,
)
from cdi.api.job import (
    BlockTargetSpec,
    DirectoryTargetSpec,
    FileTargetSpec,
    Job,
    Limits,
    Policy,
    StreamSourceSpec,
)
from cdi.api.upload_protocol import UploadId
from cdi.image.sizes import MAX_DISK, largest_file
from cdi.target.file import DiskFile
from cdi.transfer.run import transfer
from cdi.worker import upload_session
from cdi.worker.upload_bodies import BufferedBody, CheckedBody
from cdi.worker.upload_session import Session, SessionState

DISK = 1 << 20


class Breaks:
    def __init__(self, data):
        self.held = BufferedBody(bytearray(data))

    def readinto(self, view):
        count = self.held.readinto(view)
        if not count:
            raise SourceTruncated("the connection was closed")
        return count

    def interrupt(self): ...


class Waits:
    """A body that brings nothing until it is interrupted."""

    def __init__(self):
        self.event = threading.Event()

    def readinto(self, view):
        self.event.wait(30)
        raise SourceTruncated("interrupted")

    def interrupt(self):
        self.event.set()


@pytest.fixture
def session(tmp_path):
    made = Session(
        Job(
            id="uid",
            source=StreamSourceSpec(),
            target=FileTargetSpec(path=str(tmp_path / "disk.img")),
            size=DISK,
            policy=Policy(retries=0),
            journal=str(tmp_path / "journal"),
        )
    )
    yield made
    made.cancel()


def bring_all(session, data=b"x" * DISK):
    attempt = session.begin()
    attempt.source.feed(BufferedBody(bytearray(data)), last=True)
    return attempt.wait()


def test_a_volume_is_filled_once(session, tmp_path):
    assert session.state is SessionState.WAITING
    assert bring_all(session) is None
    assert (tmp_path / "disk.img").read_bytes() == b"x" * DISK
    assert session.state is SessionState.DONE
    assert session.outcome.failure is None
    with pytest.raises(AlreadyUploaded):
        session.require_idle()


def test_one_at_a_time(session):
    session.begin()
    assert session.state is SessionState.RECEIVING
    with pytest.raises(UploadUnderWay):
        session.begin()
    with pytest.raises(UploadUnderWay):
        session.begin_resumable(5, None)


def test_one_that_fails_makes_room(session):
    attempt = session.begin()
    with pytest.raises(SourceTruncated):
        attempt.source.feed(Breaks(b"x" * 1000), last=True)
    assert attempt.wait().code == "SourceTruncated"
    assert session.last_failure.code == "SourceTruncated"
    assert session.state is SessionState.WAITING
    assert bring_all(session) is None


def test_a_failure_after_the_last_byte_is_not_taken_for_success(session, monkeypatch):
    """All bytes of this upload have arrived, and its digest is wrong."""
    validated = []

    def transfer_and_look(job, control, source):
        outcome = transfer(job, control, source)
        validated.append(control.validated.is_set())
        return outcome

    monkeypatch.setattr(upload_session, "transfer", transfer_and_look)
    attempt = session.begin(length=DISK, digests=(Digest("md5", "0" * 32),))
    attempt.source.feed(BufferedBody(bytearray(b"x" * DISK)), last=True)
    assert attempt.wait_validated().code == "ChecksumMismatch"
    assert validated == [False]


def test_a_valid_upload_is_known_before_its_volume_is_complete(session, monkeypatch):
    known, commit = threading.Event(), DiskFile.commit

    def commit_later(target):
        assert known.wait(30)
        commit(target)

    monkeypatch.setattr(DiskFile, "commit", commit_later)
    attempt = session.begin(body_length=DISK)
    attempt.source.feed(BufferedBody(bytearray(b"x" * DISK)), last=True)
    assert session.state is SessionState.FINISHING
    assert attempt.wait_validated() is None
    assert (session.state, attempt.outcome) == (SessionState.FINISHING, None)
    assert "finishing" in repr(session) and "flushing, <UploadSource: complete" in repr(session)
    known.set()
    assert attempt.wait() is None
    assert session.wait_done(30)


def test_an_upload_begins_after_the_one_before_was_removed(session, monkeypatch):
    release, steps = threading.Event(), []

    def transfer_slowly(job, control, source):
        if not steps:
            steps.append("begun")
            assert control.cancelled.wait(30) and release.wait(30)
            steps.append("ended")
        else:
            steps.append("another")
        return transfer(job, control, source)

    monkeypatch.setattr(upload_session, "transfer", transfer_slowly)
    upload = session.begin_resumable(DISK, None)
    removing = threading.Thread(target=session.terminate, args=(upload,))
    removing.start()
    with session._cond:
        assert session._cond.wait_for(lambda: session.state is SessionState.REMOVING, 30)
    beginning = threading.Thread(target=session.begin)
    beginning.start()
    release.set()
    removing.join(30)
    beginning.join(30)
    with pytest.raises(UploadUnderWay):
        session.require_idle()
    session.cancel()
    assert steps == ["begun", "ended", "another"]


class Request:
    """A request with a body in memory."""

    def __init__(self, data):
        self.head = SimpleNamespace(headers={}, expect_continue=False)
        self.body = BufferedBody(bytearray(data))


def test_a_last_piece_that_is_wrong_does_not_complete_the_volume(session, tmp_path):
    """The digest is compared before the last byte is taken, or else the volume could be finished by then."""
    upload = session.begin_resumable(1000, None)
    attempt = session.find(upload)
    wrong = CheckedBody(Request(b"x" * 1000), Digest("md5", hashlib.md5(b"y" * 1000).hexdigest()), 1000)
    with pytest.raises(ChecksumMismatch):
        attempt.source.feed(wrong, last=False)
    assert not attempt.source.complete
    session.restart(attempt)
    again = session.find(upload)
    assert again is not attempt
    right = CheckedBody(Request(b"y" * 1000), Digest("md5", hashlib.md5(b"y" * 1000).hexdigest()), 1000)
    assert again.source.feed(right, last=False)
    assert again.wait() is None
    assert (tmp_path / "disk.img").read_bytes()[:1000] == b"y" * 1000


def test_a_failure_of_the_volume_ends_the_session(session, monkeypatch):
    def fails(*_):
        raise TargetIo("the disk is broken")

    monkeypatch.setattr("cdi.transfer.disk.open_target", fails)
    assert bring_all(session).code == "TargetIo"
    assert session.state is SessionState.DONE
    assert session.outcome.failure.code == "TargetIo"
    with pytest.raises(UploadNotReady):
        session.require_idle()


def test_a_resumable_one_is_gone_on_with(session, tmp_path):
    upload = session.begin_resumable(DISK, None)
    attempt = session.find(upload)
    with pytest.raises(SourceTruncated):
        attempt.source.feed(Breaks(b"a" * 700), last=False)
    assert session.find(upload) is attempt
    assert attempt.source.offset == 700
    assert attempt.source.feed(BufferedBody(bytearray(b"b" * (DISK - 700))), last=False)
    assert attempt.wait() is None
    assert session.find(upload) is None
    assert (tmp_path / "disk.img").read_bytes() == b"a" * 700 + b"b" * (DISK - 700)


def test_whoever_comes_back_takes_over(session):
    attempt = session.find(session.begin_resumable(DISK, None))
    body = Waits()
    thread = threading.Thread(target=lambda: pytest.raises(SourceTruncated, attempt.source.feed, body, last=False))
    thread.start()
    while attempt.source.idle:
        pass
    attempt.source.preempt(30)
    thread.join(30)
    assert not thread.is_alive()
    assert attempt.source.feed(BufferedBody(bytearray(DISK)), last=False)
    assert attempt.wait() is None


def test_one_that_is_left_alone_gives_way(session, monkeypatch):
    upload = session.begin_resumable(DISK, None)
    with pytest.raises(UploadUnderWay):
        session.require_idle()
    monkeypatch.setattr(upload_session, "PREEMPT_AFTER", 0.0)
    session.require_idle()
    with pytest.raises(UploadUnknown, match="superseded by a newer upload"):
        session.find(upload)


def test_one_that_nobody_goes_on_with_expires(session, monkeypatch):
    upload = session.begin_resumable(DISK, None)
    monkeypatch.setattr(upload_session, "EXPIRES", 0.0)
    with pytest.raises(UploadUnknown, match="expired"):
        session.find(upload)


def test_one_that_is_removed(session, tmp_path):
    upload = session.begin_resumable(DISK, None)
    session.find(upload).source.feed(BufferedBody(bytearray(b"x" * 1000)), last=False)
    session.terminate(upload)
    for again in (session.find, session.terminate):
        with pytest.raises(UploadUnknown, match="terminated by its client"):
            again(upload)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_an_earlier_pod_begins_at_the_first_byte(session):
    upload = UploadId(nonce="0" * 32, length=DISK)
    attempt = session.find(upload)
    assert attempt.source.wait_open(30)
    assert attempt.source.offset == 0
    other = UploadId(nonce="1" * 32, length=DISK)
    with pytest.raises(UploadUnknown, match="another upload is in progress"):
        session.find(other)


def test_limits_reach_the_upload_under_way_and_those_to_come(session):
    session.limit(Limits(bandwidth=1000))
    attempt = session.begin()
    assert attempt.control.throttle.bandwidth == 1000
    session.limit(Limits(bandwidth=2000))
    assert attempt.control.throttle.bandwidth == 2000


def test_progress_is_that_of_the_upload_under_way(session):
    assert session.progress().note == "waiting for an upload"
    attempt = session.begin(body_length=DISK)
    attempt.source.wait_open(30)
    assert session.progress().total == DISK


@pytest.mark.parametrize(
    ("target", "size"),
    [
        (FileTargetSpec(path="/nowhere/disk.img"), DISK),
        (BlockTargetSpec(path="{}/device"), None),
        (BlockTargetSpec(path="{}/device"), DISK),
    ],
)
def test_a_file_that_is_too_long_for_any_image_of_the_volume_is_refused(tmp_path, target, size):
    with open(tmp_path / "device", "wb") as device:
        device.truncate(DISK)
    target = replace(target, path=target.path.format(tmp_path))
    session = Session(Job(id="uid", source=StreamSourceSpec(), target=target, size=size))
    session.check_room(largest_file(DISK))
    with pytest.raises(TargetTooSmall, match=str(DISK)):
        session.check_room(largest_file(DISK) + 1)


@pytest.mark.parametrize("target", [FileTargetSpec(path="{}/disk.img"), DirectoryTargetSpec(path="{}")])
def test_without_a_size_the_file_system_is_the_limit(tmp_path, target):
    found = os.statvfs(tmp_path)
    total = found.f_blocks * found.f_frsize
    session = Session(
        Job(id="uid", source=StreamSourceSpec(), target=replace(target, path=target.path.format(tmp_path)))
    )
    session.check_room(min(total, MAX_DISK))
    with pytest.raises(TargetTooSmall):
        session.check_room(1 << 59)


def test_what_cannot_be_found_out_of_a_volume_is_left_to_the_transfer(tmp_path):
    session = Session(Job(id="uid", source=StreamSourceSpec(), target=BlockTargetSpec(path=str(tmp_path / "gone"))))
    session.check_room(MAX_DISK)
    with pytest.raises(TargetTooSmall):
        session.check_room(1 << 59)


def test_a_pod_that_is_stopped_says_so(session):
    session.begin()
    session.cancel()
    assert session.outcome.failure.code == "Interrupted"
    assert session.state is SessionState.DONE
