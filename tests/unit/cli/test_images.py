"""Tests of inspect, explain and import in this process: their errors, and their output without a worker."""

from __future__ import annotations

import json

import pytest

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"\x01" * 2 * MIB)
    return str(path)


def test_inspect_tells_a_file(cdi, disk):
    done = cdi("inspect", disk, "-o", "json")
    assert done.status == 0
    assert json.loads(done.out)["image"]["virtualSize"] == 2 * MIB
    assert done.err == ""


def test_inspect_keeps_terminals_safe(cdi, tmp_path):
    (tmp_path / "\x1b[2Jx").write_bytes(bytes(MIB))
    done = cdi("inspect", str(tmp_path / "\x1b[2Jx"))
    assert "\x1b" not in done.out


def test_explain_tells_the_plan_of_a_file(cdi, disk):
    done = cdi("explain", disk, "--size", "3Mi", "-v")
    assert done.status == 0
    for words in ("raw-ranged", "requested:    3 MiB", "memory:", "at most 192 MiB", "It would work.", "CHECK"):
        assert words in done.out


def test_explain_tells_a_refusal_twice(cdi, disk):
    done = cdi("explain", disk, "--size", "1Mi")
    assert done.status == 6
    assert "It would fail: the image's virtual size" in done.out
    assert done.err.startswith("error[TargetTooSmall]")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("explain",), "give exactly one"),
        (("import", "-"), "--name"),
        (("import", "x.img", "--checksum", "sha256:1"), "ChecksumInvalid"),
        (("import", "x.img", "--size", "much"), "quantity"),
        (("import", "x.img", "--region", "r"), "--region applies to s3://"),
        (("import", "http://h/x", "--ca", "missing"), "cannot be read"),
        (("import", "x.img", "--keyring", "missing"), "cannot be read"),
        (("import", "docker://h/x", "--cosign-key", "missing"), "cannot be read"),
        (("import", "docker://h/x", "--cosign-key", "/dev/null"), "no public key in PEM form"),
        (("import", "x.img", "--force"), "--force requires --to"),
        (("import", "x.img", "--to", "y", "--name", "n"), "--name applies to a DataVolume"),
        (("import", "nbd://h/x"), "the URL scheme nbd: is not supported"),
        (("inspect", "x.img", "--secret", "s"), "--secret applies to"),
        (("inspect", "http://h/x", "--secret", "s"), "NotFound"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_what_is_refused_is_one_line(cdi, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cdi(*arguments)
    assert done.status in (2, 3, 5)
    assert done.out == ""
    assert said in done.err
    assert done.err.count("\n") == 1
