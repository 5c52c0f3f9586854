from __future__ import annotations

import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import InvalidManifest, TargetPermission, TargetUnsuitable, UsageError
from cdi.batch.lockfile import Entry, Lock, check_writable, record, without_secrets

ENTRY = Entry(
    url="https://h/a.qcow2",
    validator='"x"',
    length=7,
    digest=f"sha256:{'a' * 64}",
    virtual_size=1 << 20,
    format="qcow2",
)

entries = st.builds(
    Entry,
    url=st.text(),
    validator=st.none() | st.text(),
    length=st.none() | st.integers(0, (1 << 63) - 1),
    digest=st.none() | st.just(f"md5:{'0' * 32}"),
    virtual_size=st.none() | st.integers(0, (1 << 63) - 1),
    format=st.none() | st.text(),
)
utf8 = st.text(st.characters(codec="utf-8"))


@given(st.dictionaries(utf8, entries, max_size=5))
def test_what_is_written_is_read(images):
    lock = Lock(images=images)
    assert Lock.parse(lock.text(), where="x").images == images


@given(st.dictionaries(utf8, entries, max_size=5), st.randoms())
def test_the_order_of_images_makes_no_difference(images, random):
    shuffled = list(images.items())
    random.shuffle(shuffled)
    assert Lock(images=dict(shuffled)).text() == Lock(images=images).text()


def test_entries_of_other_images_stay(tmp_path):
    path = tmp_path / "cdi.lock"
    assert record(path, {"b": ENTRY})
    assert record(path, {"a": ENTRY})
    assert not record(path, {"a": ENTRY})
    assert not record(path, {})
    lock = Lock.read(path)
    assert list(lock.images) == ["a", "b"]
    assert os.listdir(tmp_path) == ["cdi.lock"]


def test_a_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path):
    real = tmp_path / "real"
    link = tmp_path / "cdi.lock"
    link.symlink_to(real)
    record(link, {"a": ENTRY})
    real.chmod(0o664)
    record(link, {"b": ENTRY})
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o664
    assert set(Lock.read(real).images) == {"a", "b"}


def test_many_writers_lose_nothing(tmp_path):
    path = tmp_path / "cdi.lock"
    threads = [threading.Thread(target=record, args=(path, {f"i{n}": ENTRY})) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Lock.read(path).images) == 12


def test_there_is_none(tmp_path):
    assert Lock.read(tmp_path / "cdi.lock") is None
    with pytest.raises(UsageError):
        Lock.read(tmp_path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "cannot be read"),
        ("<<<<<<< HEAD", "cannot be read"),
        ("[" * 100_000, "nested more than"),
        ('{"version": 1, "x": ' + "[" * 500 + "]" * 500 + ', "images": {}}', "nested more than"),
        ("[]", "it must be an object with images"),
        ('{"version": 2, "images": {}}', "version: '2' is not 1"),
        ('{"version": 1, "images": {"a": {"url": "x"}, "a": {"url": "y"}}}', "duplicate field 'a'"),
        (
            '{"version": 1, "images": {"a": 1, "b": {}}}',
            "images.a: must be of type object, not integer; images.b.url: Required",
        ),
        ('{"version": 1, "images": {"a": {"url": "x", "sha": 1}}}', "images.a.sha: no such field"),
        (
            '{"version": 1, "images": {"a": {"url": "x", "length": true}}}',
            "images.a.length: must be of type integer, not boolean",
        ),
        ('{"version": 1, "images": {"a": {"url": "x", "length": -1}}}', "images.a.length: must be from 0 to"),
        ('{"version": 1, "images": {"a": {"url": "x", "digest": "sha256:1"}}}', "images.a.digest"),
        (
            '{"version": 1, "images": {"a": {"url": "x", "validator": 5}}}',
            "images.a.validator: must be of type string, not integer",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(body, words):
    with pytest.raises(InvalidManifest) as caught:
        Lock.parse(body, where="cdi.lock")
    assert words in caught.value.message
    assert "cdi.lock" in caught.value.message


def test_a_damaged_file_is_not_overwritten(tmp_path):
    path = tmp_path / "cdi.lock"
    path.write_text("{")
    with pytest.raises(InvalidManifest):
        record(path, {"a": ENTRY})
    assert path.read_text() == "{"


def test_where_it_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "cdi.lock"):
        with pytest.raises(TargetPermission):
            check_writable(path)
    with pytest.raises(TargetUnsuitable):
        record(tmp_path / "none" / "cdi.lock", {"a": ENTRY})
    check_writable(tmp_path / "cdi.lock")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://u:p@h:1/a?b=c", "https://h:1/a?b=c"),
        ("https://h/a?X-Amz-Signature=1&x-amz-date=2&versionId=3", "https://h/a?versionId=3"),
        ("https://h/a?sig=1&se=2&id=4", "https://h/a?id=4"),
        ("https://h/a?X-Goog-Signature=1", "https://h/a"),
        ("https://h/a?st=5&key=k&Expires=9", "https://h/a?st=5&key=k&Expires=9"),
        ("https://h/a?Signature=5&key=k&Expires=9", "https://h/a?key=k"),
        ("docker://h/a@sha256:1", "docker://h/a@sha256:1"),
        ("oci-archive:a b?x=1", "oci-archive:a b?x=1"),
        ("images/a@b?sig=1.qcow2", "images/a@b?sig=1.qcow2"),
        ("http://[/?sig=1", "http://[/"),
    ],
)
def test_no_secret_is_kept(url, kept):
    assert without_secrets(url) == kept


def test_the_text_is_plain_json():
    body = json.loads(Lock(images={"a": ENTRY}).text())
    assert body["images"]["a"]["virtualSize"] == 1 << 20
