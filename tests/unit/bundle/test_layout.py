"""Tests of the writer of image layouts."""

from __future__ import annotations

import hashlib
import json
import tarfile

import pytest

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumMismatch, SourceForbidden, SourceTruncated, TargetUnsuitable
from cdi.bundle import layout
from cdi.bundle.disk_image import variables
from cdi.bundle.layout import LayoutWriter, pack
from cdi.source.base import SourceFacts
from cdi.source.registry.labels import labels_of

CONTENT = bytes(range(256)) * 4096
DIGEST = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())


class Origin:
    """A source that breaks off after some bytes at each opening, and counts what it sent."""

    def __init__(self, content=CONTENT, *, breaks=(), error=SourceTruncated):
        self.content, self.breaks, self.error = content, list(breaks), error
        self.offsets = []

    def probe(self):
        return SourceFacts(location="origin", length=len(self.content), ranges=True)

    def open(self, offset=0, length=None):
        self.offsets.append(offset)
        return Reading(self.content[offset:], self.breaks.pop(0) if self.breaks else None, self.error)


class Reading:
    def __init__(self, content, breaks, error):
        self.content, self.left, self.error = content, breaks, error

    def readinto(self, view):
        if self.left is not None and self.left <= 0:
            raise self.error("broken")
        count = min(len(view), len(self.content), 100_000, *(() if self.left is None else (self.left,)))
        view[:count] = self.content[:count]
        self.content = self.content[count:]
        if self.left is not None:
            self.left -= count
        return count

    def close(self):
        pass


@pytest.fixture
def writer(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_FIRST_DELAY", 0.0)
    return LayoutWriter(tmp_path / "layout")


def stored(writer):
    return (writer.root / "blobs/sha256" / DIGEST.hex).read_bytes()


def test_a_broken_transfer_continues_where_it_stopped(writer):
    origin = Origin(breaks=[300_000, 200_000])
    writer.fetch(DIGEST, len(CONTENT), origin)
    assert stored(writer) == CONTENT
    assert origin.offsets == [0, 300_000, 500_000]


def test_a_later_command_continues_too_and_does_not_fetch_again_what_is_complete(writer):
    with pytest.raises(SourceForbidden):
        writer.fetch(DIGEST, len(CONTENT), Origin(breaks=[400_000], error=SourceForbidden))
    again = Origin()
    writer.fetch(DIGEST, len(CONTENT), again)
    third = Origin()
    LayoutWriter(writer.root).fetch(DIGEST, len(CONTENT), third)
    assert (again.offsets, third.offsets) == ([400_000], [])
    assert stored(writer) == CONTENT


def test_content_with_another_digest_is_not_kept(writer):
    with pytest.raises(ChecksumMismatch):
        writer.fetch(DIGEST, len(CONTENT), Origin(CONTENT[:-1] + b"x"))
    assert list((writer.root / "blobs/sha256").iterdir()) == []


def test_a_source_that_never_progresses_is_given_up(writer):
    with pytest.raises(SourceTruncated):
        writer.fetch(DIGEST, len(CONTENT), Origin(CONTENT[:1000]))


def test_blobs_of_an_earlier_bundle_are_removed_and_the_bytes_do_not_depend_on_them(writer, tmp_path):
    stale = writer.put(b"stale", "text/plain")
    writer.finish([])
    second = LayoutWriter(writer.root)
    kept = second.put(b"kept", "text/plain")
    second.finish([kept])
    names = [path.name for path in (writer.root / "blobs/sha256").iterdir()]
    assert names == [kept["digest"].partition(":")[2]] != [stale["digest"].partition(":")[2]]
    fresh = LayoutWriter(tmp_path / "fresh")
    fresh.finish([fresh.put(b"kept", "text/plain")])
    pack(writer.root, tmp_path / "one.tar")
    pack(fresh.root, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert not writer.root.exists()
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert tar.getnames()[:2] == ["oci-layout", "index.json"]
        assert all((one.mtime, one.uid, one.mode) == (0, 0, 0o644) for one in tar.getmembers())
        assert json.load(tar.extractfile("index.json"))["manifests"] == [kept]


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnsuitable):
        LayoutWriter(tmp_path)


def named(descriptor, name):
    return {**descriptor, "annotations": {layout.REF_NAME: name}}


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_images_of_a_layout_that_is_no_bundle_are_kept(writer):
    image = writer.put(b"precious", "text/plain")
    bundled = [named(image, "os"), named(image, "os_golden"), named(image, f"sha256-{'a1' * 32}.sig"), image]
    for entries in ([named(image, "v1")], [image], [*bundled, named(image, "other")]):
        writer.finish(entries)
        before = files(writer.root)
        with pytest.raises(TargetUnsuitable, match="does not belong to a bundle"):
            LayoutWriter(writer.root)
        assert files(writer.root) == before
    writer.finish(bundled)
    LayoutWriter(writer.root)


@pytest.mark.parametrize("index", [b"", b"[]", b'{"manifests": 7}', b" " * (5 << 20)])
def test_a_directory_with_another_index_is_refused(tmp_path, index):
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(TargetUnsuitable):
        LayoutWriter(tmp_path)


@pytest.mark.parametrize("place", ["blobs", "blobs/sha256", "index.json"])
def test_symbolic_links_do_not_lead_out_of_the_layout(writer, tmp_path, place):
    writer.put(b"x", "text/plain")
    writer.finish([])
    moved = tmp_path / "elsewhere"
    (writer.root / place).rename(moved)
    (writer.root / place).symlink_to(moved)
    with pytest.raises(TargetUnsuitable):
        LayoutWriter(writer.root)


def test_other_files_below_blobs_are_kept(tmp_path):
    (tmp_path / "blobs/mine").mkdir(parents=True)
    with pytest.raises(TargetUnsuitable):
        LayoutWriter(tmp_path)


def test_labels_survive_the_way_through_the_environment():
    labels = {
        "instancetype.kubevirt.io/default-instancetype": "u1.small",
        "instancetype.kubevirt.io/default-preference": "fedora",
        "kubevirt.io/x": "1",
    }
    others = {"app": "x", "cdi.kubevirt.io/dataImportCron": "c"}
    assert labels_of(variables(labels | others)) == labels
