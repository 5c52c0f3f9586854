"""Tests of the errors that ``cdi batch`` reports before it starts an import, and of its output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cdi.api.job import Progress
from cdi.batch.load import load_batch
from cdi.batch.report import Report, Result
from cdi.cli.batch import Display, _explained, _row


@pytest.fixture
def batch(cdi, tmp_path):
    def call(images, *options, **more):
        (tmp_path / "images.yaml").write_text(json.dumps({"images": images, **more}))
        return cdi("batch", str(tmp_path / "images.yaml"), *options)

    return call


def test_a_wrong_batch_begins_nothing(batch, tmp_path):
    done = batch([{"name": "a"}, {"name": "b", "url": "x", "extra": 1}])
    assert done.status == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error[InvalidManifest]: images[1].extra: no such field; images[0]: url is missing")
    assert not (tmp_path / "home/objects").exists()


@pytest.mark.parametrize(
    ("images", "options", "status", "words"),
    [
        ([{"name": "a", "url": "x"}], ["--locked"], 5, "error[LockMismatch]: there is no lock file"),
        ([{"name": "a", "url": "x"}], ["--jobs", "0"], 2, "error[UsageError]"),
        ([{"name": "a", "url": "x"}], ["--lockfile", "/none/cdi.lock"], 6, "error[TargetPermission]"),
        ([{"name": "a", "url": "http://h/x", "secretRef": "s"}], [], 2, "images[0]: Secret default/s does not exist"),
        (
            [{"name": "a", "sourceRef": {"kind": "DataSource", "name": "d"}}],
            [],
            2,
            "DataSource default/d does not exist",
        ),
        (
            [{"name": "a", "source": {"pvc": {"namespace": "x", "name": "y"}}}],
            [],
            2,
            "there is no persistentvolumeclaim x/y",
        ),
    ],
)
def test_what_is_in_the_way_is_told_before_anything_begins(batch, images, options, status, words):
    done = batch(images, *options)
    assert (done.status, done.out) == (status, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_files_where_the_volume_would_be(batch, tmp_path):
    os.makedirs(tmp_path / "home/volumes/default/a")
    (tmp_path / "home/volumes/default/a/disk.img").touch()
    done = batch([{"name": "a", "url": "x"}])
    assert done.status == 2
    assert "files exist in the place of the volume default/a" in done.err


def test_an_image_that_cannot_be_asked_fails_alone(batch, tmp_path):
    done = batch([{"name": "a", "url": "none.raw"}, {"name": "b", "url": "none.raw"}], "--jobs", "1")
    assert done.status == 1
    assert [line.split()[:2] for line in done.out.splitlines()[1:]] == [["a", "failed"], ["b", "skipped"]]
    assert "a: error[SourceNotFound]" in done.err
    assert "1 not started; --keep-going starts every image" in done.err


def test_a_table_s_row():
    result = Result(
        label="x/a",
        namespace="x",
        name="a",
        url="u",
        verdict="imported",
        size=1 << 30,
        format="qcow2",
        digest=f"sha256:{'ab' * 32}",
        seconds=75.4,
        rate=1 << 20,
    )
    assert _row(result) == ("x/a", "imported", "1 GiB", "qcow2", "75s", "1 MiB/s", "sha256:abababababab")


def test_an_interrupted_batch_says_what_goes_on():
    def result(name, verdict):
        return Result(label=name, namespace="default", name=name, url=None, verdict=verdict)

    results = (result("a", "imported"), result("b", "running"), result("c", "skipped"))
    (line,) = _explained(Report(results=results, lockfile=Path("x"), interrupted=True))
    assert line == (
        "error[Interrupted]: interrupted (b continues in the background; 1 not started). "
        "Try: run the same command again to continue"
    )
    (line,) = _explained(Report(results=results[1:2] * 12, lockfile=Path("x"), timed_out=True))
    assert "and 2 more continue in the background" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_how_it_is_shown_while_it_runs(terminal, monkeypatch, capsys, tmp_path):
    (tmp_path / "i.yaml").write_text(json.dumps({"images": [{"name": f"i{n}", "url": "x"} for n in range(3)]}))
    items = load_batch([str(tmp_path / "i.yaml")]).items
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    moment = Progress(phase="transferring", done=1 << 20, total=4 << 20)
    with Display(3, 2) as display:
        for item in items[:2]:
            display.began(item)
            display.update(item, "ImportInProgress", moment, "")
        for item in (*items[:2], items[2]):
            if item is items[2]:
                display.began(item)
            made = Result(label=item.label, namespace="default", name=item.name, url="x", verdict="imported")
            display.ended(item, made)
    captured = capsys.readouterr()
    assert captured.out == ""
    for number in range(3):
        assert f"i{number}: imported" in captured.err
    if terminal:
        assert "i1:  25%" in captured.err
        assert "batch: " in captured.err
    else:
        assert "i1: ImportInProgress 1 MiB of 4 MiB, 25%" in captured.err
        assert "[3/3] i2: imported" in captured.err
