"""Tests that a journal file is either correct or absent."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.transfer import journal as module
from cdi.transfer.journal import Journal, encode_state, is_dirty, mark_dirty, remove

SAMPLE = Journal(
    job="uid-1",
    path="raw-ranged",
    validator='"etag"',
    length=1000,
    watermark=500,
    disk_size=4096,
    algorithm="sha256",
    digest_state=encode_state(b"\x00\xffstate"),
)
MAYBE_TEXT = st.none() | st.text(max_size=30)


@given(
    st.builds(
        Journal,
        job=st.text(max_size=40),
        path=st.text(max_size=20),
        validator=MAYBE_TEXT,
        length=st.none() | st.integers(0, 1 << 62),
        watermark=st.integers(0, 1 << 62),
        disk_size=st.integers(0, 1 << 62),
        algorithm=MAYBE_TEXT,
        digest_state=st.none() | st.binary(max_size=300).map(encode_state),
        version=st.just(module.VERSION),
    )
)
def test_what_is_saved_is_loaded(tmp_path_factory, journal):
    path = str(tmp_path_factory.getbasetemp() / "round-trip")
    journal.save(path)
    assert Journal.load(path) == journal
    assert journal.state == (None if journal.digest_state is None else Journal.load(path).state)


def test_none_where_there_is_none(tmp_path):
    assert Journal.load(str(tmp_path / "journal")) is None
    assert Journal.load(str(tmp_path)) is None


BODY = json.loads(json.dumps({name: getattr(SAMPLE, name) for name in Journal.__slots__}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"17",
        b'"text"',
        b"{}",
        b"\xff\xfe\x00",
        b"[" * 60000,
        b'{"a":' * 12000,
        b"9" * 60000,
        json.dumps(BODY).encode()[:-1],
        json.dumps(BODY | {"version": 2}).encode(),
        json.dumps(BODY | {"version": None}).encode(),
        json.dumps(BODY | {"watermark": -1}).encode(),
        json.dumps(BODY | {"watermark": 1.5}).encode(),
        json.dumps(BODY | {"watermark": "500"}).encode(),
        json.dumps(BODY | {"watermark": True}).encode(),
        json.dumps(BODY | {"disk_size": None}).encode(),
        json.dumps(BODY | {"disk_size": -4096}).encode(),
        json.dumps(BODY | {"length": "1000"}).encode(),
        json.dumps(BODY | {"length": -1}).encode(),
        json.dumps(BODY | {"job": 5}).encode(),
        json.dumps(BODY | {"path": []}).encode(),
        json.dumps(BODY | {"validator": 5}).encode(),
        json.dumps(BODY | {"algorithm": {}}).encode(),
        json.dumps(BODY | {"digest_state": "!"}).encode(),
        json.dumps(BODY | {"digest_state": "AAA"}).encode(),
        json.dumps(BODY | {"digest_state": "ü"}).encode(),
        json.dumps(BODY | {"digest_state": 5}).encode(),
        json.dumps(BODY | {"more": 1}).encode(),
        json.dumps({key: value for key, value in BODY.items() if key != "job"}).encode(),
        json.dumps(BODY | {"job": "x" * 70000}).encode(),
    ],
    ids=lambda content: repr(content[-40:]),
)
def test_what_cannot_be_trusted_is_none(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    assert Journal.load(str(path)) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_journal_or_none(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    assert Journal.load(str(path)) is None


def test_saving_replaces_in_one_step(tmp_path, monkeypatch):
    path = str(tmp_path / "journal")
    SAMPLE.save(path)
    order = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), Journal.load(b), rename(a, b)))
    replace(SAMPLE, watermark=600).save(path)
    # The new file is renamed only after it is on the disk; until then the old one is valid.
    assert order[:2] == ["fsync", "replace"]
    assert Journal.load(path).watermark == 600

    def broken(_fd):
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError):
        replace(SAMPLE, watermark=700).save(path)
    assert Journal.load(path).watermark == 600


def test_a_journal_that_is_larger_than_what_is_read_of_one_is_not_half_read(tmp_path):
    path = str(tmp_path / "journal")
    replace(SAMPLE, validator="v" * 60000).save(path)
    assert Journal.load(path).validator == "v" * 60000


def test_forgetting_leaves_nothing_and_may_be_done_twice(tmp_path):
    path = tmp_path / "journal"
    SAMPLE.save(str(path))
    (tmp_path / "journal.new").write_text("half")
    remove(str(path))
    remove(str(path))
    remove(None)
    assert list(tmp_path.iterdir()) == []


def test_a_mark_is_made_where_another_pod_has_just_taken_the_directory_along(tmp_path):
    path = tmp_path / ".cdi" / "journal"
    mark_dirty(str(path))
    assert is_dirty(str(path))
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_mark_is_not_made_where_there_is_no_volume(tmp_path):
    with pytest.raises(FileNotFoundError):
        mark_dirty(str(tmp_path / "nowhere" / ".cdi" / "journal"))
    assert list(tmp_path.iterdir()) == []
