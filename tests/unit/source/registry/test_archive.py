"""Tests of image layouts with many images: which signatures are read for one of them."""

from __future__ import annotations

import json
import os
import threading

import pytest

from cdi.api.errors import ImageUnsigned, Interrupted
from cdi.api.image_signature import MAX_SIGNATURES
from cdi.source.registry.open import open_layout
from tests.integration.fixtures_registry import OciLayout

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SIGSTORE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IMAGES = MAX_SIGNATURES + 6


class Verifier:
    """A verifier that trusts one document, and keeps those that it was shown."""

    def __init__(self, trusted):
        self.trusted, self.shown, self.unread = trusted, [], ()

    def accept(self, document, digests):
        self.shown.append(document.body)
        return document.body == self.trusted

    def rejection(self, where, unread):
        self.unread = unread
        return ImageUnsigned("unsigned", where=where)


def signature(layout, content, *, subject=None, **fields):
    """Add a manifest with one signature; without a subject it is what cosign stores under a tag."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.blob(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [layout.blob(content, SIGSTORE)],
    }
    if subject is not None:
        manifest["subject"] = {name: subject[name] for name in ("mediaType", "digest", "size")}
    layout.entries.append(layout.blob(json.dumps(manifest).encode(), MANIFEST, **fields))


@pytest.fixture
def layout(tmp_path):
    """Many images, each with a referrer; neither they nor the referrers state what they are."""
    layout = OciLayout(tmp_path / "layout")
    for number in range(IMAGES):
        layer = layout.layer({f"disk/{number}": b"x"}, "none")
        image = layout.image([layer], tag=f"n{number}", platform=False)
        signature(layout, f"signature {number}".encode(), subject=image)
    return layout


@pytest.fixture(params=["tar", "directory"])
def opened(request, layout, tmp_path):
    def opened():
        (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": layout.entries}))
        path = layout.path if request.param == "directory" else layout.archive(tmp_path / "images.tar")
        return open_layout(str(path))

    return opened


def test_only_the_signatures_of_the_image_are_read(opened):
    archive = opened()
    last = IMAGES - 1
    verifier = Verifier(b"signature %d" % last)
    archive.require_signature(archive.resolve(f"n{last}", None), verifier)
    assert verifier.shown == [verifier.trusted]
    stranger = Verifier(b"other")
    with pytest.raises(ImageUnsigned):
        archive.require_signature(archive.resolve("n3", None), stranger)
    assert (stranger.shown, stranger.unread) == ([b"signature 3"], ())
    archive.close()


def test_signatures_that_cosign_save_marked_are_read_without_a_subject(layout, opened):
    signature(layout, b"kept", annotations={"kind": "dev.cosignproject.cosign/sigs"})
    archive = opened()
    verifier = Verifier(b"kept")
    archive.require_signature(archive.resolve("n0", None), verifier)
    assert verifier.shown == [b"signature 0", b"kept"]
    archive.close()


def test_a_damaged_signature_is_named(layout, opened):
    (layout.path / "blobs/sha256" / layout.entries[-1]["digest"].partition(":")[2]).write_bytes(b"damaged")
    archive = opened()
    verifier = Verifier(b"other")
    with pytest.raises(ImageUnsigned):
        archive.require_signature(archive.resolve("n0", None), verifier)
    assert len(verifier.unread) == 1
    archive.close()


def test_a_directory_of_many_blobs_keeps_no_file_open(layout):
    archive = open_layout(str(layout.path))
    before = len(os.listdir("/proc/self/fd"))
    for entry in archive.index().entries:
        archive.small_blob(entry, "layout")
    assert len(os.listdir("/proc/self/fd")) == before
    archive.close()


def test_a_closed_directory_is_not_read_through_a_reused_descriptor(layout, tmp_path):
    archive = open_layout(str(layout.path))
    entry = archive.index().entries[0]
    archive.small_blob(entry, "layout")
    archive.close()
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(Interrupted):
            archive.small_blob(entry, "layout")
        archive.close()
        os.fstat(other)
    finally:
        os.close(other)


def test_closing_waits_for_a_file_that_is_being_opened(layout, monkeypatch):
    """Without that, the file would be opened in whatever directory has the descriptor's number then."""
    archive = open_layout(str(layout.path))
    entry = archive.index().entries[0]
    closing = threading.Thread(target=archive.close)
    really = os.open

    def opening(*arguments, **options):
        closing.start()
        assert archive._lock.locked()
        return really(*arguments, **options)

    monkeypatch.setattr(os, "open", opening)
    assert archive.small_blob(entry, "layout")
    closing.join()
    monkeypatch.undo()
    with pytest.raises(Interrupted):
        archive.small_blob(entry, "layout")
