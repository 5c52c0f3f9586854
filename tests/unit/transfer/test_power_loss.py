"""Power loss at any write: whatever the volume kept, the next attempt ends with the right disk.

Each block that was written and not flushed is kept or lost at random.
"""

import hashlib
import os
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import Interrupted, SourceChanged, SourceUnreachable
from cdi.api.job import FileTargetSpec, HttpSourceSpec, Job, Policy
from cdi.transfer import watermark as watermark_module
from cdi.transfer.control import TransferControl
from cdi.transfer.journal import Journal
from cdi.transfer.pipeline import ranged
from cdi.transfer.run import transfer
from tests.memory import MemorySource, MemoryTarget
from tests.qcow2_writer import Layout, disk_of, write

BLOCK = 512


def watermark_of(path):
    journal = Journal.load(path)
    return 0 if journal is None else journal.watermark


class PowerLoss(BaseException):
    pass


class Volume(MemoryTarget):
    """A target that loses power at write number `fails_at`; every later write and flush fails too.

    Attributes:
        until: a journal that must exist before the power fails.
    """

    def __init__(self, fails_at=None, until=None, **attributes):
        self.fails_at = fails_at
        self.until = until
        self.writes = 0
        self.lost = False
        self.durable = b""
        super().__init__(**attributes)

    def write(self, view, offset):
        with self.lock:
            self.writes += 1
            fails = self.fails_at is not None and self.writes > self.fails_at
        if fails:
            while self.until is not None and not watermark_of(self.until):
                time.sleep(0.001)
            self.lost = True
            raise PowerLoss
        super().write(view, offset)

    def flush(self):
        with self.lock:
            if self.lost:
                raise PowerLoss
            self.durable = bytes(self.disk)

    def reset(self):
        super().reset()
        with self.lock:
            self.durable = bytes(self.disk)

    def reboot(self, rng):
        """Return the volume as it is after the power is back."""
        found = Volume(size=self.size, reads_zero=self.reads_zero)
        durable = self.durable[: self.size].ljust(self.size, b"\0" if self.reads_zero else b"\xa5")
        found.disk[:] = durable
        for at in range(0, self.size, BLOCK):
            if rng.random() < 0.5:
                found.disk[at : at + BLOCK] = self.disk[at : at + BLOCK]
        found.durable = bytes(found.disk)
        return found


@pytest.fixture(scope="module", autouse=True)
def small():
    """Use a piece size and a checkpoint interval that fit the test's images."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ranged, "CHUNK_SIZE", 16384)
    patch.setattr(watermark_module, "CHECKPOINT_INTERVAL", 0)
    yield
    patch.undo()


def attempt(job, source, volume):
    """Run one attempt and return its outcome."""
    patch = pytest.MonkeyPatch()
    for module in ("disk", "cleanup"):
        patch.setattr(f"cdi.transfer.{module}.open_target", lambda _spec: volume)
    patch.setattr("cdi.source.open.open_source", lambda *_: source)
    try:
        return transfer(job, TransferControl(job))
    finally:
        patch.undo()


def job_in(directory, data, *, checksum, connections=1):
    return Job(
        id="power",
        source=HttpSourceSpec(url="http://example.invalid/x"),
        target=FileTargetSpec(path=os.path.join(directory, "disk.img")),
        checksum="sha256:" + hashlib.sha256(data).hexdigest() if checksum else None,
        journal=os.path.join(directory, "journal"),
        policy=Policy(discover_checksum=False, connections=connections, retries=0),
    )


def images(kind, seed):
    rng = random.Random(seed)
    if kind == "raw":
        # The first sector is random data, so that no other format is recognised.
        data = rng.randbytes(512) + b"".join(rng.choice((bytes(8192), rng.randbytes(8192))) for _ in range(40))
        return data, data
    clusters = {}
    for guest in rng.sample(range(120), 50):
        packed = rng.random() < 0.4
        clusters[guest] = ((b"%08x" % rng.getrandbits(32)) * 512 if packed else rng.randbytes(4096), packed)
    order = [("data", guest) for guest in clusters]
    rng.shuffle(order)
    layout = Layout(120 * 4096, 12, clusters, set(), order[: rng.randrange(50)])
    return write(layout), disk_of(layout)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["raw", "qcow2"]),
    st.lists(st.integers(0, 30), max_size=5),
    st.integers(0, 1 << 30),
    st.booleans(),
    st.booleans(),
)
def test_the_disk_and_its_digest_are_true_in_the_end(tmp_path_factory, kind, losses, seed, checksum, clean):
    rng = random.Random(seed)
    data, disk = images(kind, seed)
    job = job_in(tmp_path_factory.mktemp("power"), data, checksum=checksum, connections=3)
    volume = Volume(reads_zero=clean)
    marks = []
    for fails_at in losses:
        volume.fails_at = fails_at
        try:
            attempt(job, MemorySource(data), volume)
            break
        except PowerLoss:
            volume = volume.reboot(rng)
        if os.path.exists(job.journal):
            assert Journal.load(job.journal) is not None
            marks.append(watermark_of(job.journal))
    else:
        volume.fails_at = None
        result = attempt(job, MemorySource(data), volume)
        assert result.failure is None
        assert result.resumed_at == (marks[-1] if marks else 0)
        assert result.digest == job.checksum
    assert bytes(volume.disk) == disk
    # An attempt never resumes before the point where the one before it did.
    assert marks == sorted(marks)
    assert not os.path.exists(job.journal)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("clean", [True, False])
def test_nothing_of_another_content_is_left(tmp_path, kind, clean):
    before, _ = images(kind, 1)
    data, disk = images(kind, 2)
    data, disk = (data, disk) if kind == "qcow2" else (data[: len(before)], disk[: len(before)])
    job = job_in(tmp_path, data, checksum=False)
    volume = Volume(fails_at=12, until=job.journal, reads_zero=clean)
    with pytest.raises(PowerLoss):
        attempt(job, MemorySource(before), volume)
    assert os.path.exists(job.journal)
    volume = volume.reboot(random.Random(0))
    result = attempt(job, MemorySource(data, validator="v2"), volume)
    assert result.resumed_at == 0
    assert bytes(volume.disk) == disk
    assert any("starting over" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    "change", ["job", "length", "size", "validator", "path", "algorithm", "no validator", "state", "beyond"]
)
def test_a_journal_of_anything_else_is_not_gone_on_with(tmp_path, change):
    data, disk = images("raw", 3)
    job = job_in(tmp_path, data, checksum=True)
    volume = Volume(fails_at=12, until=job.journal)
    with pytest.raises(PowerLoss):
        attempt(job, MemorySource(data), volume)
    volume = volume.reboot(random.Random(0))
    journal = Journal.load(job.journal)
    assert journal.watermark > 0
    fields = {name: getattr(journal, name) for name in Journal.__slots__}
    wrong = {
        "job": {"job": "another"},
        "length": {"length": len(data) + 1},
        "size": {"disk_size": len(disk) + 512},
        "validator": {"validator": "v0"},
        "path": {"path": "qcow2-ranged"},
        "algorithm": {"algorithm": "md5"},
        "no validator": {"validator": None},
        "state": {"digest_state": None},
        "beyond": {"watermark": len(data) + 1},
    }[change]
    Journal(**fields | wrong).save(job.journal)
    result = attempt(job, MemorySource(data), volume)
    assert result.resumed_at == 0
    assert bytes(volume.disk) == disk


def test_without_validator_or_digest_nothing_is_resumed(tmp_path):
    """Content whose version is unknown is resumed only if a digest will be compared."""
    data, disk = images("raw", 4)
    for checksum in (False, True):
        job = job_in(tmp_path, data, checksum=checksum)
        # Without either the content is one stream of few writes, and no journal is written.
        volume = Volume(fails_at=12, until=job.journal) if checksum else Volume(fails_at=0)
        with pytest.raises(PowerLoss):
            attempt(job, MemorySource(data, validator=None), volume)
        volume = volume.reboot(random.Random(0))
        result = attempt(job, MemorySource(data, validator=None), volume)
        assert (result.resumed_at > 0) == checksum
        assert bytes(volume.disk) == disk


@pytest.mark.parametrize("error", [SourceUnreachable("gone"), Interrupted("stopped")])
def test_a_failure_that_may_pass_leaves_how_far_it_came(tmp_path, error):
    data, disk = images("raw", 5)
    job = job_in(tmp_path, data, checksum=True)

    def fault(_given):
        raise error

    volume = Volume()
    result = attempt(job, MemorySource(data, faults=[None] * 9 + [fault] * 9), volume)
    assert result.failure.code == error.code
    assert volume.state == "open"
    mark = watermark_of(job.journal)
    assert mark > 0
    result = attempt(job, MemorySource(data), volume)
    assert result.resumed_at == mark
    assert bytes(volume.disk) == disk


def test_a_failure_that_will_not_pass_leaves_nothing(tmp_path):
    data, _ = images("raw", 6)
    job = job_in(tmp_path, data + b"x", checksum=True)
    volume = Volume()
    assert attempt(job, MemorySource(data), volume).failure.code == "ChecksumMismatch"
    assert volume.state == "wiped"
    assert not os.path.exists(job.journal)


def test_a_content_that_changes_under_way_is_not_mixed(tmp_path):
    data, _ = images("raw", 7)
    job = job_in(tmp_path, data, checksum=False)

    def fault(_given):
        raise SourceChanged("another now")

    volume = Volume()
    assert attempt(job, MemorySource(data, faults=[None] * 9 + [fault]), volume).failure.code == "SourceChanged"
    assert watermark_of(job.journal) == 0
    assert volume.state != "committed"
