"""State of an earlier attempt, and whether it is resumed."""

import base64
import os
import random
from dataclasses import replace

import pytest

from cdi.source.peer_chunks import CHUNK, Chain, leaf_hash
from cdi.transfer import disk as module
from cdi.transfer.clone.disk_reader import DiskReader
from cdi.transfer.journal import Journal
from tests.integration.clone.pair import clone
from tests.memory import MemoryTarget

SIZE = 8 * CHUNK
HALF = 4 * CHUNK


def disk():
    """Write random data, with holes in both halves."""
    data = bytearray(random.Random(5).randbytes(SIZE))
    for chunk in (1, 5, 6):
        data[chunk * CHUNK : (chunk + 1) * CHUNK] = bytes(CHUNK)
    return bytes(data)


CONTENT = disk()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.img"
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for at in range(0, SIZE, CHUNK):
            piece = CONTENT[at : at + CHUNK]
            if any(piece):
                file.seek(at)
                file.write(piece)
    return path


@pytest.fixture
def left(tmp_path, source):
    """Leave an attempt at half-way, with garbage beyond it; return its journal's path."""

    def left(disk_size=SIZE, **fields):
        with open(tmp_path / ".disk.img.partial", "wb") as file:
            file.write(CONTENT[:HALF] + b"garbage " * ((disk_size - HALF) // 8))
        chain = Chain()
        for at in range(0, HALF, CHUNK):
            piece = CONTENT[at : at + CHUNK]
            if any(piece):
                chain.add(at, leaf_hash(((0, CHUNK),), (piece,)))
        with DiskReader(str(source)) as origin:
            validator = origin.validator("")
        usual = {
            "job": "x",
            "path": "copy",
            "validator": validator,
            "length": SIZE,
            "watermark": HALF,
            "disk_size": disk_size,
            "algorithm": None,
            "digest_state": base64.b64encode(chain.state + (3 * CHUNK).to_bytes(8, "big")).decode(),
        }
        Journal(**(usual | fields)).save(str(tmp_path / "journal"))
        return str(tmp_path / "journal")

    return left


def test_it_goes_on_and_nothing_of_what_lay_behind_is_left(tmp_path, certificates, source, left):
    target, sent = clone(certificates, source, tmp_path / "disk.img", journal=left())
    assert target.failure is None
    assert target.resumed_at == sent.resumed_at == HALF
    assert (tmp_path / "disk.img").read_bytes() == CONTENT
    assert sent.fetched == 2 * CHUNK
    whole, _ = clone(certificates, source, tmp_path / "again.img")
    assert target.digest == whole.digest


def test_it_goes_on_where_the_volume_is_larger(tmp_path, certificates, source, left):
    target, _ = clone(certificates, source, tmp_path / "disk.img", journal=left(), size=SIZE + CHUNK)
    assert target.resumed_at == HALF
    assert (tmp_path / "disk.img").read_bytes() == CONTENT


def test_a_disk_that_an_earlier_release_began_larger_is_started_over(tmp_path, certificates, source, left):
    journal = left(disk_size=SIZE + CHUNK)
    with open(tmp_path / ".disk.img.partial", "r+b") as file:
        file.seek(SIZE)
        file.write(bytes(CHUNK))
    target, _ = clone(certificates, source, tmp_path / "disk.img", journal=journal, size=SIZE + CHUNK)
    assert target.failure is None
    assert not target.resumed_at
    assert (tmp_path / "disk.img").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "fields",
    [
        {"validator": "another"},
        {"validator": None},
        {"job": "another"},
        {"path": "raw-ranged"},
        {"length": SIZE - 512},
        {"disk_size": SIZE + CHUNK},
        {"watermark": SIZE + CHUNK},
        {"digest_state": None},
        {"digest_state": "AAAA"},
        {"digest_state": "%%"},
        {"watermark": HALF - 512},
        {"watermark": 0},
    ],
)
def test_what_is_of_another_volume_or_content_is_begun_anew(tmp_path, certificates, source, left, fields):
    target, sent = clone(certificates, source, tmp_path / "disk.img", journal=left(**fields))
    assert target.failure is None
    assert target.resumed_at == 0
    assert sent.fetched == 5 * CHUNK
    assert (tmp_path / "disk.img").read_bytes() == CONTENT


def test_a_state_that_is_not_that_of_the_content_is_found_out(tmp_path, certificates, source, left, monkeypatch):
    """A device has no validator, so its source rereads what was sent, and starts over."""
    monkeypatch.setattr(DiskReader, "has_strong_validator", property(lambda _: False))
    wrong = base64.b64encode(bytes(40)).decode()
    target, sent = clone(certificates, source, tmp_path / "disk.img", journal=left(digest_state=wrong))
    assert target.failure is None
    assert any("differs from what was fetched" in warning for warning in target.warnings)
    assert (tmp_path / "disk.img").read_bytes() == CONTENT
    # What was compared is still in the window when it is fetched.
    assert sent.fetched == 5 * CHUNK


@pytest.fixture
def device(monkeypatch):
    """Return a device without discard, full of old data."""
    target = MemoryTarget(SIZE + 2 * CHUNK, reads_zero=False, capacity=SIZE + 2 * CHUNK)
    monkeypatch.setattr(module, "open_target", lambda _: target)
    return target


def test_a_device_that_does_not_forget_reads_as_zeros_wherever_the_source_does(tmp_path, certificates, source, device):
    target, _ = clone(certificates, source, tmp_path / "ignored")
    assert target.failure is None
    assert bytes(device.disk) == CONTENT + bytes(2 * CHUNK)
    assert device.state == "committed"


def test_a_journal_says_nothing_that_is_not_on_stable_storage(tmp_path, certificates, source, device, monkeypatch):
    from cdi.transfer import watermark

    monkeypatch.setattr(watermark, "CHECKPOINT_BYTES", 1)
    said = []
    save = Journal.save

    def flush():
        device.flushed += 1
        said.append("flushed")

    def saved(journal, path):
        said.append(journal.watermark)
        save(journal, path)

    monkeypatch.setattr(device, "flush", flush)
    monkeypatch.setattr(Journal, "save", saved)
    target, _ = clone(certificates, source, tmp_path / "ignored", journal=str(tmp_path / "journal"))
    assert target.failure is None
    marks = [at for at, word in enumerate(said) if word != "flushed"]
    assert marks
    assert all(said[at - 1] == "flushed" for at in marks)
    assert sorted(os.listdir(tmp_path)) == ["source.img"]


def test_the_same_job_again_makes_the_same_disk(tmp_path, certificates, source):
    first, _ = clone(certificates, source, tmp_path / "disk.img")
    second, _ = clone(certificates, source, tmp_path / "disk.img")
    assert first.digest == second.digest
    assert replace(first, seconds=0, fetched=0) == replace(second, seconds=0, fetched=0)
