from __future__ import annotations

import gzip
import hashlib
import json

import pytest

from cdi.client.locate import locate
from cdi.client.request import Request
from cdi.explain.inspect import document, inspect
from tests.corpus import SAMPLES


def look(path, **more):
    return inspect(Request(place=locate(str(path))), **more)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_every_image_of_the_corpus_is_told_with_its_fate(sample, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(sample.build())
    found = look(path, digest=True)
    assert found.digest.hex == hashlib.sha256(path.read_bytes()).hexdigest()
    body = json.loads(json.dumps(document(found, "image")))
    if sample.refusal is None:
        # The header may be valid while the tables it points to are missing.
        assert body["image"]["format"] == sample.format
        return
    assert type(found.refusal) is sample.refusal
    assert sample.says in found.refusal.what
    assert body["refusal"]["exitStatus"] == sample.refusal.exit_status
    assert any(not check["passed"] for check in body["checks"])
    assert body["checks"][0] == {"name": "source", "passed": True, "detail": body["checks"][0]["detail"]}


def test_a_refusal_names_the_checks_that_passed_as_well(tmp_path):
    from tests.corpus import qcow2

    path = tmp_path / "image"
    path.write_bytes(gzip.compress(qcow2(backing=b"/etc/passwd", crypt=1)))
    found = look(path)
    failed = {check.name for check in found.checks if not check.passed}
    passed = {check.name for check in found.checks if check.passed}
    assert failed >= {"backing file", "encryption"}
    assert "external data file" in passed


def test_a_promise_that_is_broken_is_a_mismatch(tmp_path, monkeypatch):
    from dataclasses import replace

    from cdi.api.digest import Digest
    from cdi.source.file import FileSource

    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    probe = FileSource.probe
    promised = (Digest("sha256", "0" * 64),)
    monkeypatch.setattr(FileSource, "probe", lambda self: replace(probe(self), digests=promised))
    assert look(path, digest=True).refusal.code == "ChecksumMismatch"
    assert look(path).refusal is None
