"""Tests of an uploaded raw image that is interrupted at any point and resumed where its journal says."""

import hashlib
import random
import threading

import pytest

from cdi.api.errors import SourceTruncated
from cdi.api.job import FileTargetSpec, Job, StreamSourceSpec
from cdi.source.upload import UploadSource
from cdi.transfer.control import TransferControl
from cdi.transfer.journal import Journal
from cdi.transfer.run import transfer

MIB = 1 << 20
SIZE = 11 * MIB + 512
DATA = random.Random(9).randbytes(SIZE)


class Body:
    """The content from `start` on, which cancels the transfer at `stop` as a signal would."""

    def __init__(self, start, stop, control):
        self.at, self.stop, self.control = start, stop, control
        self.gone = threading.Event()

    def readinto(self, view):
        if self.at == self.stop < SIZE:
            self.control.cancel()
            self.gone.wait(30)
            raise SourceTruncated("interrupted")
        count = min(len(view), self.stop - self.at, 300_000)
        view[:count] = DATA[self.at : self.at + count]
        self.at += count
        return count

    def interrupt(self):
        self.gone.set()


def attempt(job, stop, validator="one"):
    """Feed a transfer up to `stop`; return its outcome, and the offset where it began."""
    control = TransferControl(job)
    source = UploadSource(length=SIZE, validator=validator, resumes=True)
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(transfer(job, control, lambda: source)))
    thread.start()
    assert source.wait_open(30)
    start = source.offset
    source.feed(Body(start, stop, control), last=False)
    thread.join()
    return outcomes[0], start


@pytest.fixture
def job(tmp_path):
    return Job(
        id="uid",
        source=StreamSourceSpec(length=SIZE),
        target=FileTargetSpec(path=str(tmp_path / "disk.img")),
        size=12 * MIB,
        checksum=f"sha256:{hashlib.sha256(DATA).hexdigest()}",
        journal=str(tmp_path / "journal"),
    )


@pytest.mark.parametrize(
    "stops", [(7 * MIB,), (3 * MIB, 8 * MIB + 5), (5 * MIB, 9 * MIB, 11 * MIB), (1000,), (SIZE - 1,)]
)
def test_it_goes_on_at_the_watermark(job, tmp_path, stops):
    began = 0
    for stop in stops:
        outcome, start = attempt(job, stop)
        assert start == began
        assert outcome.failure.code == "Interrupted"
        journal = Journal.load(job.journal)
        began = 0 if journal is None else journal.watermark
        assert began <= stop
        # Whole blocks were written, except the last one, which may be the end.
        assert stop - began <= 6 * MIB
    outcome, start = attempt(job, SIZE)
    assert (outcome.failure, start, outcome.resumed_at) == (None, began, began)
    assert outcome.digest == job.checksum
    assert (tmp_path / "disk.img").read_bytes() == DATA + bytes(12 * MIB - SIZE)
    assert Journal.load(job.journal) is None


def test_another_upload_begins_at_the_first_byte(job, tmp_path):
    attempt(job, 9 * MIB)
    assert Journal.load(job.journal).watermark
    outcome, start = attempt(job, SIZE, "two")
    assert (outcome.failure, start, outcome.resumed_at) == (None, 0, 0)
    assert (tmp_path / "disk.img").read_bytes()[:SIZE] == DATA
