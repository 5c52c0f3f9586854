from __future__ import annotations

import sys
from datetime import UTC, datetime

import click
import pytest

from cdi.api.job import Outcome, Progress
from cdi.cli import bars
from cdi.cli.options import duration as seconds_of
from cdi.cli.options import quantity
from cdi.cli.show import age, duration, paint, printable, select, table
from cdi.cli.wait import summary


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119.9, "119s"),
        (120, "2m"),
        (192, "3m12s"),
        (720, "12m"),
        (3 * 3600 + 240, "3h4m"),
        (30 * 3600, "30h"),
        (3 * 86400 + 2 * 3600, "3d2h"),
        (30 * 86400, "30d"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_ages():
    now = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    assert age("2026-01-01T00:00:30Z", now) == "30s"
    assert age("2026-01-01T00:02:00Z", now) == "0s"
    assert age(None) == ""
    assert age("yesterday") == "<invalid>"


def test_a_table_is_aligned_also_with_wide_characters():
    assert table(("A", "B"), [("漢字", "x"), ("y", "z")]) == ["A      B", "漢字   x", "y      z"]


def test_a_table_holds_no_control_characters():
    assert table(("A",), [("x\x1b[2J\ny",)]) == ["A", "x\\x1b[2J y"]


CRON = {
    "metadata": {"annotations": {"cdi.kubevirt.io/storage.import.nextCronTime": "2026-12-01T00:00:00Z"}},
    "status": {
        "currentImports": [{"DataVolumeName": "fedora-0123456789ab"}],
        "conditions": [{"type": "Progressing", "status": "False"}, {"type": "UpToDate", "status": "True"}, "odd"],
    },
}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".status.currentImports[0].DataVolumeName", "fedora-0123456789ab"),
        (".status.currentImports[1].DataVolumeName", ""),
        ('.status.conditions[?(@.type=="UpToDate")].status', "True"),
        ('.status.conditions[?(@.type=="Other")].status', ""),
        (r".metadata.annotations.cdi\.kubevirt\.io/storage\.import\.nextCronTime", "2026-12-01T00:00:00Z"),
        (".status.lastImportedPVC.name", ""),
        (".metadata[0]", ""),
        (".status.conditions.type", ""),
    ],
)
def test_printer_columns_select_values(path, text):
    assert select(CRON, path) == text


def test_printable():
    assert printable("a\tb\x07\u202ec") == "a\\x09b\\x07\\x202ec"


def test_no_colour_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert paint("x", "red") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red") == "x"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1h30m", 5400), ("1.5m", 90), ("100ms", 0.1)])
def test_durations_are_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "1w", "-1s", "1 h", "1m30"])
def test_what_is_no_duration(text):
    with pytest.raises(click.BadParameter):
        seconds_of(text)


@pytest.mark.parametrize("text", ["10Gi", "500M", "0", "1e9"])
def test_quantities_stay_as_they_are(text):
    assert quantity(text) == text


@pytest.mark.parametrize("text", ["", "ten", "-1Gi", "1e30"])
def test_what_is_no_quantity(text):
    with pytest.raises(click.BadParameter):
        quantity(text)


def progress(done, **more):
    return Progress(phase="transferring", done=done, total=1000, **more)


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 30.0, 31.0])
    monkeypatch.setattr(bars.time, "monotonic", lambda: next(clock))
    bar = bars.LineBar("golden")
    bar.update("Pending", None)
    bar.update("ImportInProgress", progress(10))
    bar.update("ImportInProgress", progress(500, rate=100.0, eta=5.0))
    bar.update("ImportInProgress", progress(600))
    bar.update("ImportInProgress", progress(600), "error[SourceStalled]: a\x1b[1m")
    bar.update("Succeeded", progress(1000))
    assert capsys.readouterr().err.splitlines() == [
        "golden: Pending",
        "golden: ImportInProgress 10 B of 1000 B, 1%",
        "golden: ImportInProgress 500 B of 1000 B, 50%, 100 B/s, 5s left",
        "golden: ImportInProgress 600 B of 1000 B, 60% (error[SourceStalled]: a\\x1b[1m)",
    ]


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bars.bar("golden") as bar:
        bar.update("ImportInProgress", progress(500, fetched=100))
        bar.update("ImportInProgress", progress(500, fetched=100), "waiting for the server")
    err = capsys.readouterr().err
    assert "golden" in err
    assert "50%" in err
    assert "waiting for the server" in err


def test_what_was_done_in_a_line():
    outcome = Outcome(
        id="x",
        format="qcow2",
        wrappers=("gz",),
        disk_size=2 << 30,
        fetched=1 << 30,
        seconds=10.0,
        resumed_at=1 << 20,
        verified_by=("SHA256SUMS",),
    )
    assert (
        summary(outcome)
        == "(qcow2+gz, 2 GiB, 1 GiB fetched in 10s, 102 MiB/s, resumed at 1 MiB, verified by SHA256SUMS)"
    )
    assert summary(None) == ""
